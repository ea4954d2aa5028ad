// Command clients has the MQTT clients of the tests. They share no code with the broker. Every record is one JSON line.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `clients: the MQTT clients of the tests

  clients worker     receives jobs until SIGTERM and reconnects whenever its connection ends
  clients publisher  publishes numbered jobs, each until it is acknowledged
  clients verify     checks the journals of a worker and a publisher
  clients incident   publishes right after each SUBACK, on every node, and checks that all messages arrive
  clients probe      makes one connection and reports the broker's answers

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
