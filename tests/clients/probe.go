package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// answers is the output of a probe. Reason codes are -1 if the request was not sent or not answered.
type answers struct {
	Connack        int      `json:"connack"`
	SessionPresent bool     `json:"sessionPresent"`
	Suback         int      `json:"suback"`
	Puback         int      `json:"puback"`
	Disconnect     int      `json:"disconnect"`
	Closed         bool     `json:"closed"`
	Received       []string `json:"received"`
	Error          string   `json:"error,omitempty"`
}

// probe makes one connection, subscribes and publishes if requested, stays connected, and prints the broker's answers.
func probe(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("probe", flag.ExitOnError)
	broker := flags.String("broker", "127.0.0.1:1883", "address")
	id := flags.String("id", "", "client id")
	user := flags.String("user", "", "user name; empty: anonymous")
	password := flags.String("password", "", "password")
	subscribe := flags.String("subscribe", "", "filter to subscribe to")
	publish := flags.String("publish", "", "topic to publish to")
	payload := flags.String("payload", "probe", "payload")
	clean := flags.Bool("clean", true, "CleanStart")
	expiry := flags.Uint("session-expiry", 0, "Session Expiry Interval in seconds; 0 sends none")
	stay := flags.Duration("stay", 0, "time to wait for messages, or for the broker to close the connection")
	expect := flags.Int("expect", -1, "end after this number of received messages")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var mu sync.Mutex
	got := answers{Connack: -1, Suback: -1, Puback: -1, Disconnect: -1, Received: []string{}}
	gone, enough := make(chan struct{}), make(chan struct{}, 1)
	l, err := connect(ctx, *broker, login{
		id: *id, user: *user, password: *password, anonymous: *user == "", clean: *clean, expiry: uint32(*expiry),
		received: func(p *paho.Publish) {
			mu.Lock()
			defer mu.Unlock()
			got.Received = append(got.Received, string(p.Payload))
			if len(got.Received) == *expect {
				enough <- struct{}{}
			}
		},
		ended: func(reason int, detail string) {
			mu.Lock()
			defer mu.Unlock()
			got.Disconnect, got.Closed, got.Error = reason, true, detail
			close(gone)
		},
	})
	if err == nil {
		got.Connack, got.SessionPresent = int(l.connack.ReasonCode), l.connack.SessionPresent
		if *subscribe != "" {
			got.Suback, err = answered(l.subscribe(ctx, *subscribe))
		}
		if *publish != "" && err == nil {
			got.Puback, err = answered(l.publish(ctx, *publish, *payload))
		}
		if *stay > 0 {
			select {
			case <-ctx.Done():
			case <-gone:
			case <-enough:
			case <-time.After(*stay):
			}
		}
	}
	// Copy the result now: closing the connection below must not change it.
	mu.Lock()
	result := got
	mu.Unlock()
	if l != nil {
		l.close()
	}
	var no refusal
	if errors.As(err, &no) {
		result.Connack = no.reason
	} else if err != nil && result.Error == "" {
		result.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func answered(reason int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	return reason, nil
}
