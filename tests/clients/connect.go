package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// login has the credentials and options of a connection.
type login struct {
	id, user, password string
	// anonymous sends neither user name nor password.
	anonymous bool
	clean     bool
	// expiry is the Session Expiry Interval in seconds; 0 sends none.
	expiry   uint32
	received func(*paho.Publish)
	// ended is called at most once, with the reason why the connection ended.
	ended func(reason int, detail string)
}

// link is a connection that the broker accepted. It does not reconnect: its owner decides where to connect next.
type link struct {
	*paho.Client
	connack *paho.Connack
}

// refusal is the error for a CONNACK with a reason code of 0x80 or above.
type refusal struct{ reason int }

func (r refusal) Error() string { return fmt.Sprintf("CONNECT refused with 0x%02x", r.reason) }

// connect opens a connection. The error is a refusal if the broker answered with one.
func connect(ctx context.Context, broker string, l login) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", broker)
	if err != nil {
		return nil, err
	}
	once := make(chan struct{}, 1)
	ended := func(reason int, detail string) {
		select {
		case once <- struct{}{}:
			if l.ended != nil {
				l.ended(reason, detail)
			}
		default:
		}
	}
	client := paho.NewClient(paho.ClientConfig{
		Conn:          conn,
		PacketTimeout: 30 * time.Second,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			if l.received != nil {
				l.received(p.Packet)
			}
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { ended(int(d.ReasonCode), "DISCONNECT from the broker") },
		OnClientError:      func(err error) { ended(0, err.Error()) },
	})
	packet := &paho.Connect{ClientID: l.id, KeepAlive: 30, CleanStart: l.clean}
	if !l.anonymous {
		packet.UsernameFlag, packet.Username = true, l.user
		packet.PasswordFlag, packet.Password = true, []byte(l.password)
	}
	if l.expiry > 0 {
		packet.Properties = &paho.ConnectProperties{SessionExpiryInterval: &l.expiry}
	}
	connack, err := client.Connect(ctx, packet)
	if connack != nil && connack.ReasonCode >= 0x80 {
		return nil, refusal{int(connack.ReasonCode)}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &link{client, connack}, nil
}

// isUp returns whether there is a connection that has not ended.
func (l *link) isUp() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.Done():
		return false
	default:
		return true
	}
}

// publish sends at QoS 1 and returns the reason code of the PUBACK. A refusal is a reason code, not an error.
func (l *link) publish(ctx context.Context, topic, payload string) (int, error) {
	ack, err := l.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)})
	if ack != nil {
		return int(ack.ReasonCode), nil
	}
	return 0, err
}

// subscribe requests QoS 1 and returns the reason code of the SUBACK.
func (l *link) subscribe(ctx context.Context, filter string) (int, error) {
	ack, err := l.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	if ack != nil && len(ack.Reasons) == 1 {
		return int(ack.Reasons[0]), nil
	}
	return 0, err
}

// close ends the connection with a DISCONNECT.
func (l *link) close() {
	if l.isUp() {
		_ = l.Disconnect(&paho.Disconnect{})
	}
}
