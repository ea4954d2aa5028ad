// Command bench measures brokers one after the other on loopback: Mosquitto, NATS with JetStream, rumqttd and Covey.
// It prints Markdown tables, each rate with its ratio to Mosquitto in the same run. It exits with status 1 if a broker
// lost a message that it acknowledged, because its numbers are then meaningless.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	kindMemory    = "memory per idle connection, KiB"
	kindIdle      = "processor while idle, % of a core"
	mostConnects  = 10_000
	parallelDials = 100
)

var loads = []load{
	{name: "qos0-fanout", qos: 0, clean: true, lanes: 1, subscribers: 20, window: 256},
	{name: "qos1-transient", qos: 1, clean: true, lanes: 4, subscribers: 1, window: 128},
	{name: "qos1-durable", qos: 1, clean: false, lanes: 4, subscribers: 1, window: 128},
	{name: "qos1-durable-single", qos: 1, clean: false, lanes: 1, subscribers: 1, window: 1},
}

type options struct {
	programs    programs
	directory   string
	duration    time.Duration
	connections int
	only        string
}

func main() {
	// Pdeathsig (see launch) kills a child when the thread that started it ends.
	runtime.LockOSThread()
	var o options
	flag.StringVar(&o.programs.mosquitto, "mosquitto", "mosquitto", "Mosquitto's `binary`")
	flag.StringVar(&o.programs.nats, "nats", "", "nats-server's `binary`; empty: NATS is not measured")
	flag.StringVar(&o.programs.rumqttd, "rumqttd", "", "`binary` of tests/peers/rumqttd; empty: rumqttd is not measured")
	flag.StringVar(&o.programs.covey, "covey", "", "Covey's `binary`; empty: Covey is not measured")
	flag.StringVar(&o.programs.before, "before", "", "an earlier `binary` of Covey, to compare with")
	flag.IntVar(&o.programs.rounds, "rounds", 1, "how `often` Covey is measured; the comparison takes the medians")
	flag.StringVar(&o.directory, "dir", "", "`directory` for the brokers' data, on the disk to be measured")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "`time` of each case, after half a second of warm-up")
	flag.IntVar(&o.connections, "connections", 2000, "`number` of idle connections whose memory is measured")
	flag.StringVar(&o.only, "only", "", "measure only Mosquitto and brokers with this `text` in their name")
	flag.Parse()
	if o.programs.before != "" {
		// Brokers are started in a directory of their own.
		before, err := filepath.Abs(o.programs.before)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		o.programs.before = before
	}
	failures, err := o.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	for _, failure := range failures {
		fmt.Fprintln(os.Stderr, "bench:", failure)
	}
	if len(failures) > 0 {
		os.Exit(1)
	}
}

func (o options) run() ([]string, error) {
	directory, err := os.MkdirTemp(o.directory, "covey-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(directory)
	if err := describe(directory); err != nil {
		return nil, err
	}
	var all table
	for _, candidate := range o.programs.candidates() {
		if candidate.name != "Mosquitto" && !strings.Contains(candidate.name, o.only) {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench:", candidate.name)
		if err := o.measure(&all, directory, candidate); err != nil {
			all.failures = append(all.failures, fmt.Sprintf("%s: %v", candidate.name, err))
		}
	}
	all.print()
	if o.programs.before != "" {
		printComparisons(all.compare())
	}
	return all.failures, nil
}

func (o options) measure(all *table, parent string, candidate candidate) error {
	directory, err := os.MkdirTemp(parent, "broker-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	port, err := freePort()
	if err != nil {
		return err
	}
	b, err := candidate.start(directory, port)
	if err != nil {
		return err
	}
	memory, share, err := idle(b, o.connections)
	all.add(candidate.name, kindMemory, 0, outcome{Rate: memory / 1024}, err)
	all.add(candidate.name, kindIdle, 0, outcome{Rate: share * 100}, err)
	for _, workers := range []int{1, parallelDials} {
		result, err := b.accounted(func() (outcome, error) { return connectRate(b, workers, mostConnects, o.duration) })
		all.add(candidate.name, fmt.Sprintf("connect, %d at a time", workers), 0, result, err)
	}
	for _, l := range loads {
		result, err := b.accounted(func() (outcome, error) { return l.run(b, o.duration) })
		all.add(candidate.name, l.name, l.qos, result, err)
	}
	return b.stop()
}

// accounted runs a case and adds the broker's CPU time and fsyncs to its result.
func (b *running) accounted(run func() (outcome, error)) (outcome, error) {
	cpu, err := b.cpu()
	if err != nil {
		return outcome{}, err
	}
	count, seconds, err := b.fsyncs()
	if err != nil {
		return outcome{}, err
	}
	result, failure := run()
	cpuAfter, err := b.cpu()
	if err != nil {
		return result, err
	}
	countAfter, secondsAfter, err := b.fsyncs()
	if result.Delivered > 0 {
		result.CPU = (cpuAfter - cpu) / time.Duration(result.Delivered)
	}
	result.Fsyncs = countAfter - count
	if result.Fsyncs > 0 {
		result.FsyncMean = time.Duration((secondsAfter - seconds) / result.Fsyncs * float64(time.Second))
	}
	return result, cmp.Or(failure, err)
}

// describe prints the number of cores, the load average, and the duration of an fsync on the disk.
func describe(directory string) error {
	average, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(directory, "sync"))
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 4096)
	var took []int64
	for range 200 {
		if _, err := file.Write(block); err != nil {
			return err
		}
		start := time.Now()
		if err := file.Sync(); err != nil {
			return err
		}
		took = append(took, int64(time.Since(start)))
	}
	p50, p99 := percentiles(took)
	fmt.Printf("%d cores, load average %s before; an fsync of 4 KiB takes %s (p50), %s (p99).\n\n", runtime.NumCPU(),
		strings.Join(strings.Fields(string(average))[:3], " "), short(p50), short(p99))
	return nil
}
