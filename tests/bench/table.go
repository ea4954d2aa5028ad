package main

import (
	"fmt"
	"os"
	"slices"
	"time"
)

type row struct {
	broker string
	result outcome
	note   string
}

// table has the rows of each case in the order in which they were added.
type table struct {
	cases    []string
	rows     map[string][]row
	failures []string
}

// add adds a result. The loss of a message acknowledged at QoS 1 is a failure, and so is a case that could not run.
func (t *table) add(broker, name string, qos byte, result outcome, err error) {
	fmt.Fprintf(os.Stderr, "bench: %s, %s: %.0f\n", broker, name, result.Rate)
	if t.rows == nil {
		t.rows = make(map[string][]row)
	}
	if !slices.Contains(t.cases, name) {
		t.cases = append(t.cases, name)
	}
	note := ""
	if result.Published > 0 {
		note = fmt.Sprintf("%d of %d", result.Delivered, result.Delivered+result.Lost)
		if result.Duplicates > 0 {
			note += fmt.Sprintf(", %d twice", result.Duplicates)
		}
		if result.Unacked > 0 {
			note += fmt.Sprintf(", %d not acknowledged", result.Unacked)
		}
	}
	if result.Lost > 0 {
		note += fmt.Sprintf(", LOST %d", result.Lost)
	}
	if result.Lost > 0 && qos > 0 {
		t.failures = append(t.failures, fmt.Sprintf("%s, %s: %d lost", broker, name, result.Lost))
	}
	if err != nil {
		note += ", FAILED"
		t.failures = append(t.failures, fmt.Sprintf("%s, %s: %v", broker, name, err))
	}
	t.rows[name] = append(t.rows[name], row{broker, result, note})
}

func (t *table) print() {
	for _, name := range t.cases {
		rows := t.rows[name]
		base := rows[0].result.Rate
		fmt.Printf("### %s\n\n", name)
		if name == kindMemory || name == kindIdle {
			fmt.Printf("| broker | value |\n|---|---:|\n")
			for _, r := range rows {
				fmt.Printf("| %s | %.1f%s |\n", r.broker, r.result.Rate, r.note)
			}
		} else {
			fmt.Printf("| broker | a second | to Mosquitto | p50 | p99 | broker CPU each | fsyncs, mean | arrived |\n")
			fmt.Printf("|---|---:|---:|---:|---:|---:|---:|---|\n")
			for _, r := range rows {
				r.print(base)
			}
		}
		fmt.Println()
	}
}

func (r row) print(base float64) {
	fsyncs := ""
	if r.result.Fsyncs > 0 {
		fsyncs = fmt.Sprintf("%.0f, %s", r.result.Fsyncs, short(r.result.FsyncMean))
	}
	fmt.Printf("| %s | %.0f | %.2f | %s | %s | %s | %s | %s |\n", r.broker, r.result.Rate, r.result.Rate/base,
		short(r.result.P50), short(r.result.P99), short(r.result.CPU), fsyncs, r.note)
}

// short formats a duration with a precision that fits its size.
func short(d time.Duration) string {
	switch {
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(100 * time.Nanosecond).String()
	}
}
