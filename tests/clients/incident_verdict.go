package main

import (
	"errors"
	"fmt"
	"sort"
	"time"
)

// sameMoment is the time within which the order of events on different connections is not reliable.
const sameMoment = 500 * time.Millisecond

// verdict is the evaluation of a run's records.
type verdict struct {
	Rounds, Acknowledged, Unmatched, Arrived, WhileCut int
	// Ended counts transient sessions that ended before their message was acknowledged, so that it had no receiver.
	Ended  int
	ByNode map[string]*nodeCount
	// Problems are violations of the broker's guarantees.
	Problems []string
}

type nodeCount struct{ Granted, Acknowledged, WhileCut, Refused, Closed int }

// conclude prints the verdict. The error lists its problems, at most 20.
func conclude(records []record, minCut int) error {
	v := weigh(records)
	fmt.Printf("%d SUBACKs, %d publishes acknowledged (%d while cut, %d with 0x10), %d of them arrived, %d transient sessions had ended\n",
		v.Rounds, v.Acknowledged, v.WhileCut, v.Unmatched, v.Arrived, v.Ended)
	nodes := make([]string, 0, len(v.ByNode))
	for node := range v.ByNode {
		nodes = append(nodes, node)
	}
	sort.Strings(nodes)
	for _, node := range nodes {
		n := v.ByNode[node]
		fmt.Printf("  %s: %d SUBACKs, %d acknowledged, %d of them while cut, %d refusals, %d connections closed\n",
			node, n.Granted, n.Acknowledged, n.WhileCut, n.Refused, n.Closed)
	}
	var problems []error
	for _, problem := range v.Problems[:min(len(v.Problems), 20)] {
		problems = append(problems, errors.New(problem))
	}
	if more := len(v.Problems) - len(problems); more > 0 {
		problems = append(problems, fmt.Errorf("and %d more", more))
	}
	if v.WhileCut < minCut {
		problems = append(problems, fmt.Errorf("%d rounds while a node was cut off instead of at least %d", v.WhileCut, minCut))
	}
	if v.Acknowledged == 0 {
		problems = append(problems, errors.New("nothing to verify: no publish was acknowledged"))
	}
	return errors.Join(problems...)
}

// weigh evaluates the records of a run. A message that was acknowledged after a SUBACK must arrive, whatever reason
// code the PUBACK had. The only exception: a transient session ends with its connection, and a message acknowledged
// after that had no receiver.
func weigh(records []record) verdict {
	v := verdict{ByNode: map[string]*nodeCount{}}
	arrived, granted, ends, present := map[int]bool{}, map[int]record{}, map[string][]time.Time{}, map[string]bool{}
	node := func(name string) *nodeCount {
		if v.ByNode[name] == nil {
			v.ByNode[name] = &nodeCount{}
		}
		return v.ByNode[name]
	}
	for _, e := range records {
		switch e.Kind {
		case kindArrived:
			arrived[e.Number] = true
		case kindSubscribed:
			v.Rounds++
			granted[e.Number] = e
			node(e.Broker).Granted++
		case kindRefused:
			node(e.Broker).Refused++
		case kindDisconnected:
			node(e.Broker).Closed++
			ends[e.Client] = append(ends[e.Client], e.Time)
		case kindConnected:
			if e.Durable && present[e.Client] && !e.SessionPresent {
				v.Problems = append(v.Problems, fmt.Sprintf("durable session %s was gone on reconnect at %s", e.Client, e.Broker))
			}
			present[e.Client] = true
		}
	}
	for _, e := range records {
		if e.Kind != kindAcknowledged {
			continue
		}
		v.Acknowledged++
		grant := granted[e.Number]
		node(e.Broker).Acknowledged++
		if grant.Cut {
			v.WhileCut++
			node(e.Broker).WhileCut++
		}
		if e.Reason == 0x10 {
			v.Unmatched++
		}
		switch {
		case arrived[e.Number]:
			v.Arrived++
		case !e.Durable && endedBetween(ends[e.Client], grant.Time, e.Time.Add(sameMoment)):
			v.Ended++
		default:
			v.Problems = append(v.Problems, fmt.Sprintf(
				"message %d, subscribed at %s and acknowledged with 0x%02x through %s, never reached %s", e.Number, e.Broker, e.Reason, e.Via, e.Client))
		}
	}
	return v
}

func endedBetween(ends []time.Time, from, to time.Time) bool {
	for _, end := range ends {
		if end.After(from) && end.Before(to) {
			return true
		}
	}
	return false
}
