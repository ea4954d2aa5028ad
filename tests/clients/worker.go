package main

import (
	"context"
	"flag"
	"net/url"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// worker is a job worker: MQTT 5 with autopaho, keep alive 30 s, Clean Start 0, by default no Session Expiry
// Interval, and a QoS 1 subscription after every connect.
func worker(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("worker", flag.ExitOnError)
	brokers := flags.String("brokers", "127.0.0.1:1883", "addresses, separated by commas")
	id := flags.String("id", "deploy.docer.wps.cn", "client id")
	user := flags.String("user", "", "user name")
	password := flags.String("password", "", "password")
	topic := flags.String("topic", "jobs/deploy", "topic filter")
	retry := flags.Duration("retry", time.Second, "pause between connection attempts")
	expiry := flags.Uint("session-expiry", 0, "Session Expiry Interval in seconds, for brokers that need it to keep a session; 0 sends none")
	out := flags.String("out", "-", "journal")
	if err := flags.Parse(args); err != nil {
		return err
	}
	j, err := openJournal(*out)
	if err != nil {
		return err
	}
	config := autopaho.ClientConfig{
		ServerUrls:                    urls(*brokers),
		KeepAlive:                     30,
		CleanStartOnInitialConnection: false,
		SessionExpiryInterval:         uint32(*expiry),
		ConnectUsername:               *user,
		ConnectPassword:               []byte(*password),
		ReconnectBackoff:              autopaho.NewConstantBackoff(*retry),
		OnConnectionUp: func(manager *autopaho.ConnectionManager, ack *paho.Connack) {
			j.write(record{Kind: kindConnected, SessionPresent: ack.SessionPresent, Reason: int(ack.ReasonCode)})
			go workerSubscribe(ctx, manager, j, *topic)
		},
		OnConnectError: func(err error) { j.write(record{Kind: kindRefused, Detail: err.Error()}) },
		ClientConfig: paho.ClientConfig{
			ClientID: *id,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				// The library acknowledges after this returns, so every acknowledged job is in the journal.
				j.write(record{Kind: kindJob, Topic: p.Packet.Topic, Payload: string(p.Packet.Payload), Dup: p.Packet.Duplicate()})
				return true, nil
			}},
			OnClientError: func(err error) { j.write(record{Kind: kindDisconnected, Detail: err.Error()}) },
			OnServerDisconnect: func(d *paho.Disconnect) {
				j.write(record{Kind: kindDisconnected, Reason: int(d.ReasonCode)})
			},
		},
	}
	// The manager must outlive ctx, so that Disconnect below still has a connection.
	manager, err := autopaho.NewConnection(context.Background(), config)
	if err != nil {
		return err
	}
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = manager.Disconnect(last)
	return nil
}

func workerSubscribe(ctx context.Context, manager *autopaho.ConnectionManager, j *journal, topic string) {
	ack, err := manager.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 1}}})
	r := record{Kind: kindSubscribed, Topic: topic}
	if ack != nil && len(ack.Reasons) == 1 {
		r.Reason = int(ack.Reasons[0])
	}
	if err != nil {
		r.Kind, r.Detail = kindRefused, err.Error()
	}
	j.write(r)
}

func urls(brokers string) []*url.URL {
	var list []*url.URL
	for broker := range strings.SplitSeq(brokers, ",") {
		list = append(list, &url.URL{Scheme: "mqtt", Host: broker})
	}
	return list
}
