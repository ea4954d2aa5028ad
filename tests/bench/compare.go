package main

import (
	"fmt"
	"slices"
	"strings"
)

const (
	nameNow    = "Covey"
	nameBefore = "Covey before"
)

// comparison has, for one case and number of nodes, the medians over all rounds of the present binary relative to the
// earlier one.
type comparison struct {
	name, nodes string
	rate, cpu   float64 // 1 is unchanged; cpu is 0 for cases without it
	rounds      int
}

// compare returns a comparison for each case that both binaries ran.
func (t *table) compare() []comparison {
	var all []comparison
	for _, name := range t.cases {
		for _, nodes := range []string{", 1 node", ", 3 nodes"} {
			now, before := t.medians(name, nameNow+nodes), t.medians(name, nameBefore+nodes)
			if now.rounds == 0 || before.rounds == 0 || before.rate == 0 {
				continue
			}
			c := comparison{name: name, nodes: strings.TrimPrefix(nodes, ", "), rate: now.rate / before.rate, rounds: now.rounds}
			if before.cpu > 0 {
				c.cpu = now.cpu / before.cpu
			}
			all = append(all, c)
		}
	}
	return all
}

type medians struct {
	rate, cpu float64
	rounds    int
}

func (t *table) medians(name, broker string) medians {
	var rates, cpus []float64
	for _, r := range t.rows[name] {
		if r.broker == broker && r.result.Rate > 0 {
			rates = append(rates, r.result.Rate)
			cpus = append(cpus, float64(r.result.CPU))
		}
	}
	return medians{median(rates), median(cpus), len(rates)}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

func printComparisons(all []comparison) {
	fmt.Printf("### now to before, medians\n\n| case | nodes | rounds | a second, value | broker CPU each |\n|---|---|---:|---:|---:|\n")
	for _, c := range all {
		cpu := ""
		if c.cpu > 0 {
			cpu = fmt.Sprintf("%.2f", c.cpu)
		}
		fmt.Printf("| %s | %s | %d | %.2f | %s |\n", c.name, c.nodes, c.rounds, c.rate, cpu)
	}
	fmt.Println()
}
