package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// publisher publishes the numbers 1 to -count in order. It sends each number again, on new connections if necessary,
// until a PUBACK accepts it.
func publisher(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("publisher", flag.ExitOnError)
	brokers := flags.String("brokers", "127.0.0.1:1883", "addresses, separated by commas; tried in turn")
	id := flags.String("id", "dispatcher", "client id")
	user := flags.String("user", "", "user name")
	password := flags.String("password", "", "password")
	topic := flags.String("topic", "jobs/deploy", "topic")
	count := flags.Int("count", 2000, "jobs")
	rate := flags.Float64("rate", 50, "jobs per second at most")
	patience := flags.Duration("patience", 15*time.Second, "time to wait for a PUBACK before closing the connection")
	out := flags.String("out", "-", "journal")
	if err := flags.Parse(args); err != nil {
		return err
	}
	j, err := openJournal(*out)
	if err != nil {
		return err
	}
	p := &dispatcher{
		journal: j, brokers: strings.Split(*brokers, ","), topic: *topic, patience: *patience,
		login: login{id: *id, user: *user, password: *password, clean: true, ended: func(reason int, detail string) {
			j.write(record{Kind: kindDisconnected, Reason: reason, Detail: detail})
		}},
	}
	pace := time.NewTicker(time.Duration(float64(time.Second) / *rate))
	defer pace.Stop()
	for number := 1; number <= *count; number++ {
		select {
		case <-ctx.Done():
		case <-pace.C:
		}
		if err := p.dispatch(ctx, number); err != nil {
			return fmt.Errorf("stopped before job %d was acknowledged: %w", number, err)
		}
	}
	p.link.close()
	return nil
}

type dispatcher struct {
	journal  *journal
	brokers  []string
	topic    string
	patience time.Duration
	login    login
	link     *link
	attempt  int
}

// dispatch publishes a job until it is acknowledged, or returns an error when ctx ends.
func (p *dispatcher) dispatch(ctx context.Context, number int) error {
	for attempts := 1; ; attempts++ {
		if err := p.reconnect(ctx); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, p.patience)
		reason, err := p.link.publish(wait, p.topic, strconv.Itoa(number))
		cancel()
		if err == nil && reason < 0x80 {
			p.journal.write(record{Kind: kindAcknowledged, Number: number, Reason: reason, Attempts: attempts})
			return nil
		}
		if err == nil {
			p.journal.write(record{Kind: kindRefused, Number: number, Reason: reason})
			if err := pause(ctx, 200*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		p.journal.write(record{Kind: kindUnanswered, Number: number, Detail: err.Error()})
		p.link.close()
	}
}

// reconnect opens a connection if there is none, trying the brokers in turn.
func (p *dispatcher) reconnect(ctx context.Context) error {
	for !p.link.isUp() {
		broker := p.brokers[p.attempt%len(p.brokers)]
		p.attempt++
		l, err := connect(ctx, broker, p.login)
		if err == nil {
			p.link = l
			p.journal.write(record{Kind: kindConnected, Broker: broker, SessionPresent: l.connack.SessionPresent})
			return nil
		}
		var no refusal
		errors.As(err, &no)
		p.journal.write(record{Kind: kindRefused, Broker: broker, Reason: no.reason, Detail: err.Error()})
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// pause waits, or returns the error of ctx if that ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
