package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// idleTime is the time over which CPU time is measured while the connections are idle.
const idleTime = 3 * time.Second

// connectRate connects and disconnects with CleanSession 1 from several workers in parallel, until the time has passed
// or `most` connections were made.
func connectRate(b *running, workers, most int, duration time.Duration) (outcome, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		all   []int64
		first error
		taken atomic.Int64
	)
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			var mine []int64
			var err error
			for err == nil && taken.Add(1) <= int64(most) && time.Since(start) < duration {
				var took time.Duration
				took, err = connectOnce(b, workers, w, len(mine))
				mine = append(mine, int64(took))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	o := outcome{Rate: float64(len(all)) / elapsed.Seconds(), Delivered: len(all)}
	o.P50, o.P99 = percentiles(all)
	return o, first
}

// connectOnce returns the time from the start of the TCP connection to the CONNACK.
func connectOnce(b *running, workers, w, n int) (time.Duration, error) {
	start := time.Now()
	source := fmt.Sprintf("127.0.%d.%d", workers%250, w+1)
	c, err := dial(b.address(w+n), source, fmt.Sprintf("connect-%d-%d-%d", workers, w, n), true, b.who)
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, c.disconnect()
}

// idle returns the growth of the broker's resident memory per connection in bytes, summed over its processes, and the
// CPU usage while all connections are idle, in cores.
func idle(b *running, connections int) (memory, share float64, err error) {
	time.Sleep(time.Second)
	before, err := b.resident()
	if err != nil {
		return 0, 0, err
	}
	clients := make([]*client, 0, connections)
	defer func() {
		for _, c := range clients {
			_ = c.disconnect()
		}
	}()
	for n := range connections {
		c, err := dial(b.address(n), "127.0.0.1", fmt.Sprintf("idle-%d", n), true, b.who)
		if err != nil {
			return 0, 0, err
		}
		clients = append(clients, c)
	}
	time.Sleep(time.Second)
	cpu, err := b.cpu()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(idleTime)
	cpuAfter, err := b.cpu()
	if err != nil {
		return 0, 0, err
	}
	after, err := b.resident()
	return float64(after-before) / float64(connections), (cpuAfter - cpu).Seconds() / idleTime.Seconds(), err
}
