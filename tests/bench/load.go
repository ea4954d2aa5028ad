package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	payloadSize = 128
	warmUp      = 500 * time.Millisecond
	// Time without progress after which outstanding messages count as lost.
	stall = 5 * time.Second
)

// load is one case: lanes of one publisher and some subscribers, each lane with its own topic. A lane has at most
// window messages outstanding: a message is done when every subscriber of the lane has it and, at QoS 1, the publisher
// has its acknowledgement. Queues therefore stay short, and latency does not include the time in a growing backlog.
type load struct {
	name        string
	qos         byte
	clean       bool
	lanes       int
	subscribers int
	window      int
}

// outcome is the result of a case.
type outcome struct {
	Rate       float64       // deliveries a second
	P50, P99   time.Duration // from before the PUBLISH is written until a subscriber has read it
	Published  int
	Delivered  int
	Lost       int // acknowledged at QoS 1, or sent at QoS 0, and not delivered; summed over the subscribers
	Unacked    int
	Duplicates int
	CPU        time.Duration // of the broker's processes, per delivery
	Fsyncs     float64
	FsyncMean  time.Duration
}

type lane struct {
	load      load
	topic     string
	publisher *client
	receivers []*receiver
	slots     chan uint16    // free slots
	left      []atomic.Int32 // per slot: number of deliveries and acknowledgements that are outstanding
	sequence  []atomic.Int64 // per slot: number of its message
	acked     []bool         // by number; written by readAcks only
	sent      int
}

// receiver is one subscriber. Only its goroutine may use its fields until that has ended.
type receiver struct {
	client     *client
	lane       *lane
	seen       []bool // by number
	latencies  []int64
	duplicates int
	err        error
}

func (l load) run(b *running, duration time.Duration) (outcome, error) {
	lanes := make([]*lane, l.lanes)
	for n := range lanes {
		made, err := l.connect(b, n)
		if err != nil {
			return outcome{}, err
		}
		lanes[n] = made
	}
	from := time.Now().Add(warmUp)
	until := from.Add(duration)
	var publishers, readers sync.WaitGroup
	errs := make([]error, len(lanes))
	for n, ln := range lanes {
		for _, r := range ln.receivers {
			readers.Go(func() { r.err = r.read(from.UnixNano(), until.UnixNano()) })
		}
		if l.qos > 0 {
			readers.Go(ln.readAcks)
		}
		publishers.Go(func() { errs[n] = ln.write(until) })
	}
	publishers.Wait()
	for _, ln := range lanes {
		ln.publisher.conn.Close()
		for _, r := range ln.receivers {
			r.client.conn.Close()
		}
	}
	readers.Wait()
	for _, ln := range lanes {
		for _, r := range ln.receivers {
			if !errors.Is(r.err, net.ErrClosed) {
				errs = append(errs, r.err)
			}
		}
	}
	return collect(lanes, duration), errors.Join(errs...)
}

// connect opens the connections of a lane. Publisher and first subscriber use different nodes if there are several.
func (l load) connect(b *running, n int) (*lane, error) {
	ln := &lane{load: l, topic: fmt.Sprintf("bench/%s/%d", l.name, n), slots: make(chan uint16, l.window),
		left: make([]atomic.Int32, l.window), sequence: make([]atomic.Int64, l.window)}
	for slot := range l.window {
		ln.slots <- uint16(slot)
	}
	for k := range l.subscribers {
		id := fmt.Sprintf("%s-sub-%d-%d", l.name, n, k)
		c, err := dial(b.address(n+k+1), "127.0.0.1", id, l.clean, b.who)
		if err != nil {
			return nil, err
		}
		if err := c.subscribe(ln.topic, l.qos); err != nil {
			return nil, err
		}
		c.grow()
		ln.receivers = append(ln.receivers, &receiver{client: c, lane: ln})
	}
	c, err := dial(b.address(n), "127.0.0.1", fmt.Sprintf("%s-pub-%d", l.name, n), true, b.who)
	if err != nil {
		return nil, err
	}
	c.grow()
	ln.publisher = c
	return ln, nil
}

// write publishes until `until`, and returns when every message is done or nothing has moved for `stall`.
func (ln *lane) write(until time.Time) error {
	payload := make([]byte, payloadSize)
	for {
		slot, err := ln.take()
		if err != nil {
			return err
		}
		now := time.Now()
		if now.After(until) {
			ln.slots <- slot
			break
		}
		parts := int32(ln.load.subscribers)
		if ln.load.qos > 0 {
			parts++
		}
		ln.left[slot].Store(parts)
		ln.sequence[slot].Store(int64(ln.sent))
		binary.BigEndian.PutUint64(payload, uint64(ln.sent))
		binary.BigEndian.PutUint64(payload[8:], uint64(now.UnixNano()))
		binary.BigEndian.PutUint16(payload[16:], slot)
		ln.sent++
		if err := ln.publisher.publish(ln.topic, ln.load.qos, slot+1, payload); err != nil {
			return err
		}
	}
	for range ln.load.window {
		_, err := ln.take()
		if err != nil && ln.load.qos > 0 {
			return err
		}
		if err != nil {
			// QoS 0 messages may be lost; collect counts them.
			return nil
		}
	}
	return nil
}

// take returns a free slot. It flushes the publisher's buffer before it waits for one.
func (ln *lane) take() (uint16, error) {
	select {
	case slot := <-ln.slots:
		return slot, nil
	default:
	}
	if err := ln.publisher.out.Flush(); err != nil {
		return 0, err
	}
	select {
	case slot := <-ln.slots:
		return slot, nil
	case <-time.After(stall):
		return 0, fmt.Errorf("%s: no progress for %s after %d messages", ln.topic, stall, ln.sent)
	}
}

func (ln *lane) done(slot uint16) {
	if ln.left[slot].Add(-1) == 0 {
		ln.slots <- slot
	}
}

func (ln *lane) readAcks() {
	for {
		kind, _, body, err := ln.publisher.read()
		if err != nil || kind != typePuback || len(body) != 2 {
			return
		}
		slot := binary.BigEndian.Uint16(body) - 1
		if int(slot) >= ln.load.window || !mark(&ln.acked, int(ln.sequence[slot].Load())) {
			return
		}
		ln.done(slot)
	}
}

func (r *receiver) read(from, until int64) error {
	for {
		kind, flags, body, err := r.client.read()
		if err != nil {
			return err
		}
		if kind != typePublish {
			return fmt.Errorf("subscriber received packet type %d", kind)
		}
		identifier, payload, err := parsePublish(flags, body)
		if err != nil || len(payload) != payloadSize {
			return fmt.Errorf("invalid PUBLISH of %d bytes: %w", len(body), err)
		}
		now := time.Now().UnixNano()
		if mark(&r.seen, int(binary.BigEndian.Uint64(payload))) {
			if now >= from && now < until {
				r.latencies = append(r.latencies, now-int64(binary.BigEndian.Uint64(payload[8:])))
			}
			r.lane.done(binary.BigEndian.Uint16(payload[16:]))
		} else {
			r.duplicates++
		}
		if r.lane.load.qos > 0 {
			if err := r.client.puback(identifier); err != nil {
				return err
			}
			if r.client.in.Buffered() == 0 {
				if err := r.client.out.Flush(); err != nil {
					return err
				}
			}
		}
	}
}

// mark adds a number to the set and returns whether it was new.
func mark(set *[]bool, number int) bool {
	for len(*set) <= number {
		*set = append(*set, false)
	}
	before := (*set)[number]
	(*set)[number] = true
	return !before
}

func collect(lanes []*lane, duration time.Duration) outcome {
	var o outcome
	var latencies []int64
	for _, ln := range lanes {
		o.Published += ln.sent
		for n := range ln.sent {
			acked := ln.load.qos == 0 || has(ln.acked, n)
			if !acked {
				o.Unacked++
			}
			for _, r := range ln.receivers {
				if has(r.seen, n) {
					o.Delivered++
				} else if acked {
					o.Lost++
				}
			}
		}
		for _, r := range ln.receivers {
			o.Duplicates += r.duplicates
			latencies = append(latencies, r.latencies...)
		}
	}
	o.Rate = float64(len(latencies)) / duration.Seconds()
	o.P50, o.P99 = percentiles(latencies)
	return o
}

func has(set []bool, number int) bool { return number < len(set) && set[number] }

func percentiles(values []int64) (p50, p99 time.Duration) {
	if len(values) == 0 {
		return 0, 0
	}
	slices.Sort(values)
	return time.Duration(values[len(values)/2]), time.Duration(values[len(values)*99/100])
}
