package main

import (
	"testing"
	"time"
)

func TestTwoBinariesAreComparedByTheirMedians(t *testing.T) {
	var all table
	for _, rate := range []float64{100, 300, 200} {
		all.add(nameBefore+", 1 node", "case", 0, outcome{Rate: rate, CPU: 10 * time.Microsecond}, nil)
	}
	for _, rate := range []float64{150, 1000, 100} {
		all.add(nameNow+", 1 node", "case", 0, outcome{Rate: rate, CPU: 5 * time.Microsecond}, nil)
	}
	all.add(nameNow+", 3 nodes", "case", 0, outcome{Rate: 1}, nil)
	want := comparison{name: "case", nodes: "1 node", rate: 0.75, cpu: 0.5, rounds: 3}
	if got := all.compare(); len(got) != 1 || got[0] != want {
		t.Fatalf("%+v, not %+v", got, want)
	}
}

func TestEachRoundTurnsTheOrderOfTheBinaries(t *testing.T) {
	var names []string
	for _, c := range (programs{covey: "now", before: "before", rounds: 2}).candidates() {
		names = append(names, c.name)
	}
	want := []string{"Mosquitto", "Covey before, 1 node", "Covey, 1 node", "Covey before, 3 nodes", "Covey, 3 nodes",
		"Covey, 1 node", "Covey before, 1 node", "Covey, 3 nodes", "Covey before, 3 nodes"}
	if len(names) != len(want) {
		t.Fatal(names)
	}
	for i := range want {
		if names[i] != want[i] {
			t.Fatal(names)
		}
	}
}
