package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const startTimeout = 60 * time.Second

// running is a running broker: one process, or the processes of one cluster.
type running struct {
	name      string
	addresses []string
	metrics   []string // URLs; only for Covey
	who       account
	pids      []int
	main      *exec.Cmd
}

func (b *running) address(n int) string { return b.addresses[n%len(b.addresses)] }

// launch starts a program with its output in the file `log` of its directory.
func launch(directory, program string, arguments ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(directory, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command := exec.Command(program, arguments...)
	command.Dir, command.Stdout, command.Stderr = directory, log, log
	// Kills the child when this program ends for any reason.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return command, command.Start()
}

// awaitListening waits until a client can connect.
func (b *running) awaitListening() error {
	deadline := time.Now().Add(startTimeout)
	for {
		c, err := dial(b.addresses[0], "127.0.0.1", "bench-ready", true, b.who)
		if err == nil {
			return c.disconnect()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not accept connections: %w", b.name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (b *running) stop() error {
	if err := b.main.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- b.main.Wait() }()
	select {
	case <-ended:
		return nil
	case <-time.After(30 * time.Second):
		_ = b.main.Process.Kill()
		<-ended
		return fmt.Errorf("%s did not end on SIGTERM", b.name)
	}
}

// resident returns the resident memory of all processes in bytes.
func (b *running) resident() (int64, error) {
	var sum int64
	for _, pid := range b.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return 0, err
		}
		pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += pages * int64(os.Getpagesize())
	}
	return sum, nil
}

// cpu returns the CPU time of all processes so far, in user and kernel mode.
func (b *running) cpu() (time.Duration, error) {
	// USER_HZ is 100 on every Linux that Go runs on.
	const tick = 10 * time.Millisecond
	var sum time.Duration
	for _, pid := range b.pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(ticks) * tick
		}
	}
	return sum, nil
}

// fsyncs returns number and total seconds of the fsyncs of all processes; 0 if the broker has no metric for them.
func (b *running) fsyncs() (count, seconds float64, err error) {
	for _, url := range b.metrics {
		response, err := http.Get(url)
		if err != nil {
			return 0, 0, err
		}
		c, s := sumFsyncs(response.Body)
		response.Body.Close()
		count, seconds = count+c, seconds+s
	}
	return count, seconds, nil
}

func sumFsyncs(text io.Reader) (count, seconds float64) {
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 2 || !strings.Contains(fields[0], "storage_fsync_duration_seconds") {
			continue
		}
		value, err := strconv.ParseFloat(fields[1], 64)
		name, _, _ := strings.Cut(fields[0], "{")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "_count"):
			count += value
		case strings.HasSuffix(name, "_sum"):
			seconds += value
		}
	}
	return count, seconds
}

// freePort returns a port that is free now, like the nine after it. All are below the ports of outgoing connections.
func freePort() (int, error) {
	for range 100 {
		base := 6000 + 10*rand.IntN(1300)
		free := true
		for port := base; port < base+10 && free; port++ {
			listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			free = err == nil
			if free {
				listener.Close()
			}
		}
		if free {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no ten free ports in a row")
}
