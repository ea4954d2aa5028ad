package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// record is one event that a client observed. Which fields are set depends on Kind.
type record struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`

	// connected, disconnected, refused
	Broker         string `json:"broker,omitempty"`
	SessionPresent bool   `json:"sessionPresent,omitempty"`
	Reason         int    `json:"reason,omitempty"`
	Detail         string `json:"detail,omitempty"`

	// job
	Topic   string `json:"topic,omitempty"`
	Payload string `json:"payload,omitempty"`
	Dup     bool   `json:"dup,omitempty"`

	// acknowledged (publisher)
	Number   int `json:"number,omitempty"`
	Attempts int `json:"attempts,omitempty"`

	// incident
	Client  string `json:"client,omitempty"`
	Durable bool   `json:"durable,omitempty"`
	Via     string `json:"via,omitempty"`
	Cut     bool   `json:"cut,omitempty"`
}

const (
	kindConnected    = "connected"
	kindDisconnected = "disconnected"
	kindRefused      = "refused"
	kindSubscribed   = "subscribed"
	kindJob          = "job"
	kindAcknowledged = "acknowledged"
	kindUnanswered   = "unanswered"
	kindArrived      = "arrived"
)

// journal appends records, each in one write, so that a killed client leaves only complete lines.
type journal struct {
	mu   sync.Mutex
	file *os.File
}

// openJournal opens a journal that appends to path; "-" is the standard output.
func openJournal(path string) (*journal, error) {
	if path == "-" {
		return &journal{file: os.Stdout}, nil
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	return &journal{file: file}, err
}

func (j *journal) write(r record) record {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	line, err := json.Marshal(r)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil {
		// Without the record the verdict would be wrong.
		fmt.Fprintf(os.Stderr, "clients: failed to write a record: %v\n", err)
		os.Exit(1)
	}
	return r
}

func readJournal(path string) ([]record, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var records []record
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, len(records)+1, err)
		}
		records = append(records, r)
	}
	return records, lines.Err()
}
