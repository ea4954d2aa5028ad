// Command clients holds the MQTT clients of the tests: independent of the broker's own code, and of each other where
// the point of a test is that two programs agree. Every record is one JSON line; see record.go.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `clients: the MQTT clients of the tests

  clients worker     receives jobs as the department's worker does, until SIGTERM
  clients publisher  publishes numbered jobs, each until it is acknowledged
  clients verify     judges what a worker and a publisher recorded
  clients incident   publishes right after each SUBACK, on every node, and judges what arrived
  clients probe      makes one connection and reports what the broker answered

Each prints its options with -h.`

func main() {
	programs := map[string]func(context.Context, []string) error{
		"worker": worker, "publisher": publisher, "verify": verify, "incident": incident, "probe": probe,
	}
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := programs[os.Args[1]](ctx, os.Args[2:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "clients %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
