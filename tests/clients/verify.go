package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
)

// verify checks a worker's journal against a publisher's.
func verify(_ context.Context, args []string) error {
	flags := flag.NewFlagSet("verify", flag.ExitOnError)
	workerPath := flags.String("worker", "worker.jsonl", "the worker's journal")
	publisherPath := flags.String("publisher", "publisher.jsonl", "the publisher's journal")
	count := flags.Int("count", 0, "minimum number of acknowledged jobs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	received, err := readJournal(*workerPath)
	if err != nil {
		return err
	}
	sent, err := readJournal(*publisherPath)
	if err != nil {
		return err
	}
	sentence, err := judge(received, sent, *count)
	fmt.Println(sentence)
	return err
}

// judge checks that every acknowledged job arrived, the first arrivals in order, and that every reconnect of the worker
// found its session. It returns a summary, and an error with every problem.
func judge(received, sent []record, count int) (string, error) {
	arrivals, connections, fresh, repeats, last := map[int]bool{}, 0, 0, 0, 0
	var problems []error
	for _, r := range received {
		switch r.Kind {
		case kindConnected:
			connections++
			if connections > 1 && !r.SessionPresent {
				fresh++
			}
		case kindJob:
			number, err := strconv.Atoi(r.Payload)
			if err != nil {
				problems = append(problems, fmt.Errorf("received %q, which was never published", r.Payload))
				continue
			}
			if arrivals[number] {
				repeats++
				continue
			}
			arrivals[number] = true
			if number < last {
				problems = append(problems, fmt.Errorf("job %d arrived for the first time after job %d", number, last))
			}
			last = max(last, number)
		}
	}
	acknowledged, lost := 0, []int{}
	for _, r := range sent {
		if r.Kind != kindAcknowledged {
			continue
		}
		acknowledged++
		if !arrivals[r.Number] {
			lost = append(lost, r.Number)
		}
	}
	if len(lost) > 0 {
		problems = append(problems, fmt.Errorf("%d acknowledged jobs never arrived: %s", len(lost), some(lost)))
	}
	if fresh > 0 {
		problems = append(problems, fmt.Errorf("%d reconnects without session present", fresh))
	}
	if acknowledged < count {
		problems = append(problems, fmt.Errorf("%d jobs acknowledged instead of %d", acknowledged, count))
	}
	if acknowledged == 0 || connections == 0 {
		problems = append(problems, errors.New("nothing to verify: the journals show no acknowledgement or no connection"))
	}
	return fmt.Sprintf("%d jobs acknowledged, %d arrived (%d more than once), %d connections of the worker",
		acknowledged, len(arrivals), repeats, connections), errors.Join(problems...)
}

// some returns the first ten numbers as text.
func some(numbers []int) string {
	if len(numbers) > 10 {
		return fmt.Sprintf("%v and %d more", numbers[:10], len(numbers)-10)
	}
	return fmt.Sprint(numbers)
}
