package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// relay is a minimal broker for one topic. It acknowledges every message and forwards all but every dropEvery-th one.
type relay struct {
	dropEvery  int
	mu         sync.Mutex
	subscriber net.Conn
	count      int
}

func (r *relay) listen(t *testing.T) *running {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go r.serve(conn)
		}
	}()
	return &running{name: "relay", addresses: []string{listener.Addr().String()}}
}

func (r *relay) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		first, err := in.ReadByte()
		if err != nil {
			return
		}
		length, err := binary.ReadUvarint(in)
		if err != nil {
			return
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		r.answer(conn, first, body)
	}
}

func (r *relay) answer(conn net.Conn, first byte, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch first >> 4 {
	case 1:
		conn.Write([]byte{0x20, 2, 0, 0})
	case 8:
		r.subscriber = conn
		conn.Write([]byte{0x90, 3, body[0], body[1], 1})
	case typePublish:
		topic := 2 + int(binary.BigEndian.Uint16(body))
		conn.Write([]byte{typePuback << 4, 2, body[topic], body[topic+1]})
		r.count++
		if r.dropEvery == 0 || r.count%r.dropEvery != 0 {
			packet := binary.AppendUvarint([]byte{first}, uint64(len(body)))
			r.subscriber.Write(bytes.Join([][]byte{packet, body}, nil))
		}
	}
}

func TestEverythingAcknowledgedArrives(t *testing.T) {
	b := (&relay{}).listen(t)
	result, err := load{name: "relay", qos: 1, lanes: 1, subscribers: 1, window: 8}.run(b, 200*time.Millisecond)
	if err != nil || result.Lost != 0 || result.Unacked != 0 || result.Delivered == 0 || result.Rate == 0 {
		t.Fatalf("%+v, %v", result, err)
	}
}

func TestAnAcknowledgedMessageThatDoesNotArriveIsLost(t *testing.T) {
	b := (&relay{dropEvery: 100}).listen(t)
	result, err := load{name: "relay", qos: 1, lanes: 1, subscribers: 1, window: 8}.run(b, 200*time.Millisecond)
	if err == nil || result.Lost != 8 || result.Published != result.Delivered+result.Lost {
		t.Fatalf("%+v, %v", result, err)
	}
	var all table
	all.add("relay", "case", 1, result, nil)
	if len(all.failures) != 1 {
		t.Fatalf("a loss was not recorded as a failure: %+v", all)
	}
}
