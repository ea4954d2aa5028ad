package main

import (
	"strings"
	"testing"
	"time"
)

// workerSaw returns the journal of a worker that connected once, without a session, and received the payloads.
func workerSaw(payloads ...string) []record {
	records := []record{{Kind: kindConnected}}
	for _, payload := range payloads {
		records = append(records, record{Kind: kindJob, Payload: payload})
	}
	return records
}

func accepted(count int) []record {
	var records []record
	for number := 1; number <= count; number++ {
		records = append(records, record{Kind: kindAcknowledged, Number: number})
	}
	return records
}

func TestJudgeNamesWhatWasBroken(t *testing.T) {
	cases := map[string]struct {
		received []record
		count    int
		want     string
	}{
		"all arrived":            {workerSaw("1", "2", "3"), 3, ""},
		"repeats are allowed":    {workerSaw("1", "2", "1", "2", "3"), 3, ""},
		"one lost":               {workerSaw("1", "3"), 3, "1 acknowledged jobs never arrived: [2]"},
		"out of order":           {workerSaw("1", "3", "2"), 3, "job 2 arrived for the first time after job 3"},
		"a job never published":  {workerSaw("1", "2", "3", "x"), 3, `received "x"`},
		"fewer than asked for":   {workerSaw("1", "2", "3"), 4, "3 jobs acknowledged instead of 4"},
		"session gone":           {append(workerSaw("1", "2", "3"), record{Kind: kindConnected}), 3, "1 reconnects without session present"},
		"session kept":           {append(workerSaw("1", "2", "3"), record{Kind: kindConnected, SessionPresent: true}), 3, ""},
		"worker never connected": {[]record{{Kind: kindJob, Payload: "1"}, {Kind: kindJob, Payload: "2"}, {Kind: kindJob, Payload: "3"}}, 3, "nothing to verify"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := judge(c.received, accepted(3), c.count)
			if c.want == "" && err != nil {
				t.Fatalf("unexpected: %v", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("wanted %q, got %v", c.want, err)
			}
		})
	}
}

func TestWeighHoldsEveryAcknowledgementAgainstAnArrival(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	granted := record{Time: at(0), Kind: kindSubscribed, Number: 1, Client: "s", Broker: "a", Cut: true}
	acked := record{Time: at(5), Kind: kindAcknowledged, Number: 1, Client: "s", Broker: "a", Via: "b", Reason: 0x10}
	durable := func(e record) record { e.Durable = true; return e }
	closed := func(second int) record {
		return record{Time: at(second), Kind: kindDisconnected, Client: "s", Broker: "a"}
	}
	cases := map[string]struct {
		records []record
		broken  int
		ended   int
	}{
		"arrived":                                  {[]record{granted, acked, {Time: at(6), Kind: kindArrived, Number: 1}}, 0, 0},
		"acknowledged with 0x10 and lost":          {[]record{granted, acked}, 1, 0},
		"session ended before the acknowledgement": {[]record{granted, closed(3), acked}, 0, 1},
		"session ended long after":                 {[]record{granted, acked, closed(9)}, 1, 0},
		"durable sessions do not end":              {[]record{durable(granted), closed(3), durable(acked)}, 1, 0},
		"never acknowledged":                       {[]record{granted, {Kind: kindUnanswered, Number: 1}}, 0, 0},
		"durable session gone": {[]record{
			{Kind: kindConnected, Client: "d", Durable: true}, {Kind: kindConnected, Client: "d", Durable: true},
		}, 1, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			v := weigh(c.records)
			if len(v.Problems) != c.broken || v.Ended != c.ended {
				t.Fatalf("wanted %d broken and %d ended, got %+v", c.broken, c.ended, v)
			}
		})
	}
	if v := weigh([]record{granted, acked}); v.WhileCut != 1 || v.Unmatched != 1 || v.ByNode["a"].WhileCut != 1 {
		t.Fatalf("wrong counts: %+v", v)
	}
}
