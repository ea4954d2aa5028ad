package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// incident subscribes to new filters on every node, publishes to each right after its SUBACK through another connection
// on any node, and checks that every acknowledged message arrived. Half of the subscribers have durable sessions and
// reconnect to another node when theirs is gone; the others wait for their node.
func incident(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("incident", flag.ExitOnError)
	brokers := flags.String("brokers", "127.0.0.1:1883", "addresses, one per node, separated by commas")
	user := flags.String("user", "", "user name")
	password := flags.String("password", "", "password")
	prefix := flags.String("prefix", "incident", "first level of the topics, and prefix of the client ids")
	count := flags.Int64("count", 10000, "number of rounds with an acknowledged PUBLISH")
	rate := flags.Float64("rate", 60, "rounds per second at most")
	subscribers := flags.Int("subscribers", 4, "subscribers per node, every second one with a durable session")
	while := flags.String("while", "", "continue while this file exists, even after -count rounds")
	cut := flags.String("cut", "", "file that exists while a node is cut off from its peers")
	minCut := flags.Int("min-cut", 0, "minimum number of acknowledged rounds whose SUBACK came while a node was cut off")
	settle := flags.Duration("settle", 60*time.Second, "time to wait for the last arrivals")
	out := flags.String("out", "incident.jsonl", "journal")
	check := flags.String("check", "", "only check this journal")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *check != "" {
		records, err := readJournal(*check)
		if err != nil {
			return err
		}
		return conclude(records, *minCut)
	}
	j, err := openJournal(*out)
	if err != nil {
		return err
	}
	run := &run{
		journal: j, nodes: strings.Split(*brokers, ","), user: *user, password: *password, prefix: *prefix,
		name: strconv.FormatInt(time.Now().UnixMilli(), 36), cut: *cut, pending: map[int]chan struct{}{},
		publishers: map[string]*shared{},
	}
	for _, node := range run.nodes {
		run.publishers[node] = &shared{}
	}
	err = run.rounds(ctx, *subscribers, *rate, func() bool {
		return run.acknowledged.Load() < *count || exists(*while)
	}, *settle)
	return errors.Join(err, conclude(run.records, *minCut))
}

// run is one run of the checker.
type run struct {
	journal                            *journal
	nodes                              []string
	user, password, prefix, name, cut  string
	publishers                         map[string]*shared
	number, acknowledged, subscriberID atomic.Int64

	mu      sync.Mutex
	records []record
	// pending has the rounds whose message was or may be acknowledged and has not arrived.
	pending map[int]chan struct{}
}

// shared is the publishing connection to a node, opened on first use.
type shared struct {
	mu   sync.Mutex
	link *link
}

func (r *run) note(e record) {
	e = r.journal.write(e)
	r.mu.Lock()
	r.records = append(r.records, e)
	r.mu.Unlock()
}

// rounds runs rounds while `more` returns true, and then waits up to `settle` for the last arrivals.
func (r *run) rounds(ctx context.Context, subscribers int, rate float64, more func() bool, settle time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	permits := make(chan struct{})
	var loops sync.WaitGroup
	for index := range subscribers * len(r.nodes) {
		s := &subscriber{
			run: r, home: index % len(r.nodes), durable: (index/len(r.nodes))%2 == 1,
			client: fmt.Sprintf("%s-%s-%d", r.prefix, r.name, r.subscriberID.Add(1)),
		}
		loops.Go(func() { s.loop(ctx, permits) })
	}
	pace := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer pace.Stop()
	for more() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pace.C:
		}
		select {
		case permits <- struct{}{}:
		case <-time.After(time.Second):
		}
	}
	close(permits)
	deadline := time.Now().Add(settle)
	for r.waiting() > 0 && time.Now().Before(deadline) {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	stop()
	loops.Wait()
	return nil
}

func (r *run) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending)
}

// expectArrival registers a round before its PUBLISH is sent. The returned channel is closed by settled.
func (r *run) expectArrival(number int) chan struct{} {
	arrived := make(chan struct{})
	r.mu.Lock()
	r.pending[number] = arrived
	r.mu.Unlock()
	return arrived
}

// settled ends the wait for a round, because its message arrived or was not acknowledged.
func (r *run) settled(number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if arrived := r.pending[number]; arrived != nil {
		close(arrived)
		delete(r.pending, number)
	}
}

// publish sends through the first node that accepts a connection, starting with node `first`.
func (r *run) publish(ctx context.Context, first int, topic, payload string) (via string, reason int, err error) {
	for step := range r.nodes {
		via = r.nodes[(first+step)%len(r.nodes)]
		var l *link
		if l, err = r.publisher(ctx, via); err != nil {
			continue
		}
		reason, err = l.publish(ctx, topic, payload)
		return via, reason, err
	}
	return via, 0, err
}

func (r *run) publisher(ctx context.Context, node string) (*link, error) {
	s := r.publishers[node]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.isUp() {
		return s.link, nil
	}
	l, err := connect(ctx, node, login{
		id: fmt.Sprintf("%s-%s-p%d", r.prefix, r.name, r.subscriberID.Add(1)), user: r.user, password: r.password, clean: true,
	})
	if err != nil {
		var no refusal
		errors.As(err, &no)
		r.note(record{Kind: kindRefused, Broker: node, Reason: no.reason, Detail: "publisher: " + err.Error()})
		return nil, err
	}
	s.link = l
	return l, nil
}

// subscriber is a subscribing client. It reconnects whenever its connection ends.
type subscriber struct {
	run     *run
	client  string
	home    int
	durable bool
	link    *link
	node    string
	next    int
}

func (s *subscriber) loop(ctx context.Context, permits <-chan struct{}) {
	for range permits {
		s.round(ctx)
	}
	// Stay connected until the end, because messages may still be queued in a durable session.
	for ctx.Err() == nil {
		_ = s.connected(ctx)
		_ = pause(ctx, 200*time.Millisecond)
	}
	s.link.close()
}

// round sends one SUBSCRIBE, one PUBLISH after its SUBACK, and waits for the arrival. After two seconds the next round
// starts, and the arrival is awaited in parallel.
func (s *subscriber) round(ctx context.Context) {
	if err := s.connected(ctx); err != nil {
		return
	}
	r := s.run
	number := int(r.number.Add(1))
	topic := fmt.Sprintf("%s/%s/%d", r.prefix, r.name, number)
	l, node := s.link, s.node
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if reason, err := l.subscribe(wait, topic); err != nil || reason >= 0x80 {
		e := record{Kind: kindRefused, Number: number, Client: s.client, Broker: node, Reason: reason, Detail: "no SUBACK"}
		if err != nil {
			e.Detail = "no SUBACK: " + err.Error()
			// The broker may have accepted the filter nevertheless; a new connection resolves that.
			l.close()
		}
		r.note(e)
		return
	}
	r.note(record{Kind: kindSubscribed, Number: number, Client: s.client, Broker: node, Durable: s.durable, Cut: exists(r.cut)})
	arrived := r.expectArrival(number)
	via, reason, err := r.publish(ctx, number, topic, strconv.Itoa(number))
	if err != nil || reason >= 0x80 {
		e := record{Kind: kindUnanswered, Number: number, Client: s.client, Broker: node, Via: via, Reason: reason}
		if err != nil {
			e.Detail = err.Error()
		}
		r.note(e)
		r.settled(number)
		return
	}
	r.note(record{Kind: kindAcknowledged, Number: number, Client: s.client, Broker: node, Via: via, Reason: reason, Durable: s.durable})
	r.acknowledged.Add(1)
	select {
	case <-arrived:
		_, _ = l.Unsubscribe(wait, &paho.Unsubscribe{Topics: []string{topic}})
	case <-ctx.Done():
	case <-time.After(2 * time.Second):
	}
}

// connected opens a connection if there is none. A transient subscriber waits for its own node; a durable one tries the
// nodes in turn.
func (s *subscriber) connected(ctx context.Context) error {
	if s.link.isUp() {
		return nil
	}
	r := s.run
	node := r.nodes[s.home]
	if s.durable {
		node = r.nodes[(s.home+s.next)%len(r.nodes)]
	}
	l := login{id: s.client, user: r.user, password: r.password, clean: !s.durable}
	if s.durable {
		l.expiry = 3600
	}
	l.received = func(p *paho.Publish) {
		number, _ := strconv.Atoi(string(p.Payload))
		r.note(record{Kind: kindArrived, Number: number, Client: s.client, Dup: p.Duplicate()})
		r.settled(number)
	}
	l.ended = func(reason int, detail string) {
		r.note(record{Kind: kindDisconnected, Client: s.client, Broker: node, Reason: reason, Detail: detail, Durable: s.durable})
	}
	connection, err := connect(ctx, node, l)
	if err != nil {
		var no refusal
		errors.As(err, &no)
		r.note(record{Kind: kindRefused, Client: s.client, Broker: node, Reason: no.reason, Detail: err.Error()})
		s.next++
		return errors.Join(err, pause(ctx, 300*time.Millisecond))
	}
	present := connection.connack.SessionPresent
	r.note(record{Kind: kindConnected, Client: s.client, Broker: node, SessionPresent: present, Durable: s.durable})
	s.link, s.node = connection, node
	return nil
}

func exists(path string) bool {
	if path == "" {
		return false
	}
	_, err := os.Stat(path)
	return err == nil
}
