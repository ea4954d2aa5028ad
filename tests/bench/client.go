package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Packet types of MQTT 3.1.1, section 2.2.1, in the high half of the first byte.
const (
	typeConnack    = 2
	typePublish    = 3
	typePuback     = 4
	typeSuback     = 9
	bufferSize     = 64 << 10
	connectTimeout = 10 * time.Second
	keepAlive      = 3600 // s
)

// client is a connection that reads and writes whole buffers, so that it uses little CPU beside the broker under test.
// One goroutine may read and one may write at the same time.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
	// One body per direction, because each may have its own goroutine.
	inBody, outBody []byte
}

type account struct{ user, password string }

// dial connects with MQTT 3.1.1. `source` is a loopback address; several of them keep ports from running out.
func dial(address, source, id string, clean bool, who account) (*client, error) {
	dialer := net.Dialer{Timeout: connectTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, in: bufio.NewReaderSize(conn, 512), out: bufio.NewWriterSize(conn, 512)}
	if err := c.connect(id, clean, who); err != nil {
		conn.Close()
		return nil, fmt.Errorf("CONNECT %s at %s: %w", id, address, err)
	}
	return c, nil
}

// grow replaces the buffers by large ones, for connections under load. Idle connections are many and keep small ones.
func (c *client) grow() {
	c.in = bufio.NewReaderSize(c.conn, bufferSize)
	c.out = bufio.NewWriterSize(c.conn, bufferSize)
}

func (c *client) connect(id string, clean bool, who account) error {
	var flags byte
	if clean {
		flags |= 0x02
	}
	// Longer than any case. A keep alive of 0 is refused by rumqttd.
	body := append(str(nil, "MQTT"), 4, 0, 0, 0)
	binary.BigEndian.PutUint16(body[8:], keepAlive)
	body = str(body, id)
	if who.user != "" {
		flags |= 0xc0
		body = str(str(body, who.user), who.password)
	}
	body[7] = flags
	if err := c.send(0x10, body); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(connectTimeout))
	defer c.conn.SetReadDeadline(time.Time{})
	kind, _, answer, err := c.read()
	if err != nil {
		return err
	}
	if kind != typeConnack || len(answer) != 2 || answer[1] != 0 {
		return fmt.Errorf("answered with packet type %d, %v", kind, answer)
	}
	return nil
}

// subscribe subscribes to one filter and fails unless it is granted with this QoS.
func (c *client) subscribe(filter string, qos byte) error {
	if err := c.send(0x82, append(str([]byte{0, 1}, filter), qos)); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(connectTimeout))
	defer c.conn.SetReadDeadline(time.Time{})
	kind, _, answer, err := c.read()
	if err != nil {
		return err
	}
	if kind != typeSuback || len(answer) != 3 || answer[2] != qos {
		return fmt.Errorf("SUBSCRIBE %s was answered with packet type %d, %v", filter, kind, answer)
	}
	return nil
}

// publish writes a PUBLISH into the buffer. The identifier is used only at QoS 1.
func (c *client) publish(topic string, qos byte, identifier uint16, payload []byte) error {
	length := 2 + len(topic) + len(payload)
	if qos > 0 {
		length += 2
	}
	c.outBody = append(c.outBody[:0], 0x30|qos<<1)
	c.outBody = binary.AppendUvarint(c.outBody, uint64(length))
	c.outBody = str(c.outBody, topic)
	if qos > 0 {
		c.outBody = binary.BigEndian.AppendUint16(c.outBody, identifier)
	}
	c.outBody = append(c.outBody, payload...)
	_, err := c.out.Write(c.outBody)
	return err
}

func (c *client) puback(identifier uint16) error {
	_, err := c.out.Write([]byte{typePuback << 4, 2, byte(identifier >> 8), byte(identifier)})
	return err
}

// disconnect sends DISCONNECT, closes the sending side, and waits until the broker has closed the connection.
func (c *client) disconnect() error {
	defer c.conn.Close()
	if err := c.send(0xe0, nil); err != nil {
		return err
	}
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(connectTimeout))
	for {
		_, _, _, err := c.read()
		// A broker that closes before it has read our last bytes resets the connection.
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *client) send(first byte, body []byte) error {
	packet := binary.AppendUvarint([]byte{first}, uint64(len(body)))
	if _, err := c.out.Write(append(packet, body...)); err != nil {
		return err
	}
	return c.out.Flush()
}

// read returns type, flags and body of the next packet. The body is valid until the next call.
func (c *client) read() (kind, flags byte, body []byte, err error) {
	first, err := c.in.ReadByte()
	if err != nil {
		return 0, 0, nil, err
	}
	length, err := binary.ReadUvarint(c.in)
	if err != nil {
		return 0, 0, nil, err
	}
	if uint64(cap(c.inBody)) < length {
		c.inBody = make([]byte, length)
	}
	c.inBody = c.inBody[:length]
	_, err = io.ReadFull(c.in, c.inBody)
	return first >> 4, first & 0x0f, c.inBody, err
}

// parsePublish returns packet identifier and payload of a PUBLISH. The identifier is 0 at QoS 0.
func parsePublish(flags byte, body []byte) (identifier uint16, payload []byte, err error) {
	if len(body) < 2 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	rest := body[2:]
	topic := int(binary.BigEndian.Uint16(body))
	if flags&0x06 != 0 {
		if len(rest) < topic+2 {
			return 0, nil, io.ErrUnexpectedEOF
		}
		return binary.BigEndian.Uint16(rest[topic:]), rest[topic+2:], nil
	}
	if len(rest) < topic {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return 0, rest[topic:], nil
}

func str(to []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(to, uint16(len(s))), s...)
}
