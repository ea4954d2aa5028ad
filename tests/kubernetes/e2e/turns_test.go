package e2e

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// Every scenario has a namespace and an MqttCluster of its own. What they share is the Kubernetes cluster, the operator
// and the processors of the machine. As many run side by side as -parallel says, where `turns` permits it. They begin in
// the order of `turns`; a later one begins first only if what runs keeps the earlier ones from beginning.
//
// With -parallel 2 that is:
//
//	TestQuickstart     before the first turn: it installs the chart
//	TestAlerts         beside TestIncident, TestAccess and TestBadManifests, one after the other
//	TestRolloutFaults  beside TestWorker
//	the parts of TestWorker and TestAccess without an operator, one after the other
//	TestFiveNodes
//	TestDeletion       removes the chart

// company says beside which others a scenario may run.
type company int

const (
	// waiting needs little processor time and has long limits. It may run beside waiting, calm and busy ones.
	waiting company = iota
	// calm has limits of a few seconds, or demands that a cluster is ready at one moment. Brokers that get too little
	// processor time to renew their leases are unready, so calm ones do not run beside busy ones.
	calm
	// busy starts brokers again and again, and has long limits.
	busy
	// alone may not run beside any other.
	alone
)

// turn is the turn of a scenario, or of its second part.
type turn struct {
	name string
	with company
}

// withoutOperator follows the name of a scenario in the name of the turn in which it scales the operator to zero.
const withoutOperator = " without operator"

var turns = []turn{
	// Crashes a machine. No other cluster that may exist then has a broker there; see scenario.create.
	{"TestAlerts", waiting},
	{"TestIncident", calm},
	{"TestAccess", calm},
	{"TestBadManifests", calm},
	{"TestRolloutFaults", busy},
	{"TestWorker", busy},
	// Soon after their first parts, because their clusters exist until then.
	{"TestWorker" + withoutOperator, alone},
	{"TestAccess" + withoutOperator, alone},
	// Has a broker on every machine, cordons one after the other, and permits one unready broker at a time.
	{"TestFiveNodes", alone},
	{"TestDeletion", alone},
}

// mayRunBeside returns whether two turns may be running at the same time.
func (t turn) mayRunBeside(other turn) bool {
	switch {
	case t.with == alone || other.with == alone:
		return false
	case t.with == waiting || other.with == waiting:
		return true
	default:
		return t.with == other.with
	}
}

// queue lets scenarios begin.
type queue struct {
	mu      sync.Mutex
	changed *sync.Cond
	// limit is how many may run at the same time.
	limit int
	// waiting is in the order of `turns`. A turn is in it before its scenario waits, so that no later one overtakes.
	waiting, running []turn
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.changed = sync.NewCond(&q.mu)
	return q
}

// scenarios is the queue of this run.
var scenarios *queue

// sideBySide makes the queue with the number of -parallel. To the testing package all scenarios are parallel: it
// resumes them all once the tests that are not have ended, and the queue lets them begin.
func sideBySide() error {
	flag.Parse()
	given := flag.Lookup("test.parallel")
	limit, err := strconv.Atoi(given.Value.String())
	if err != nil || limit < 1 {
		return fmt.Errorf("-parallel %s is not a number of at least 1", given.Value)
	}
	scenarios = newQueue(limit)
	return given.Value.Set(strconv.Itoa(max(limit, len(turns))))
}

// register puts a turn into the queue.
func (q *queue) register(name string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(name)
}

func (q *queue) add(name string) error {
	rank := func(name string) int { return slices.IndexFunc(turns, func(t turn) bool { return t.name == name }) }
	at := rank(name)
	if at < 0 {
		return fmt.Errorf("%s is not in the table of turns", name)
	}
	q.waiting = append(q.waiting, turns[at])
	slices.SortFunc(q.waiting, func(a, b turn) int { return rank(a.name) - rank(b.name) })
	return nil
}

// enter waits until a registered turn may begin, and returns the names of those that it begins beside.
func (q *queue) enter(name string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	for next, ok := q.next(); !ok || next.name != name; next, ok = q.next() {
		q.changed.Wait()
	}
	return q.begin(name)
}

// next returns the turn that begins next, or false if none may begin now.
func (q *queue) next() (turn, bool) {
	for _, t := range q.waiting {
		conflict := slices.ContainsFunc(q.running, func(r turn) bool { return !t.mayRunBeside(r) })
		if !conflict && len(q.running) < q.limit {
			return t, true
		}
	}
	return turn{}, false
}

func (q *queue) begin(name string) []string {
	var beside []string
	for _, r := range q.running {
		beside = append(beside, r.name)
	}
	at := slices.IndexFunc(q.waiting, func(t turn) bool { return t.name == name })
	q.running = append(q.running, q.waiting[at])
	q.waiting = slices.Delete(q.waiting, at, at+1)
	q.changed.Broadcast()
	return beside
}

// leave ends a running turn. If `then` is not empty, it is registered at the same moment.
func (q *queue) leave(name, then string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running = slices.DeleteFunc(q.running, func(r turn) bool { return r.name == name })
	defer q.changed.Broadcast()
	if then == "" {
		return nil
	}
	return q.add(then)
}

// TestTurns runs the queue through all scenarios without a Kubernetes cluster. Each takes as many steps as it takes
// minutes.
func TestTurns(t *testing.T) {
	minutes := map[string]int{"TestAlerts": 6, "TestIncident": 5, "TestAccess": 1, "TestBadManifests": 1, "TestRolloutFaults": 6,
		"TestWorker": 4, "TestFiveNodes": 7, "TestWorker" + withoutOperator: 2, "TestAccess" + withoutOperator: 2, "TestDeletion": 1}
	later := map[string]string{"TestWorker": "TestWorker" + withoutOperator, "TestAccess": "TestAccess" + withoutOperator}
	q := newQueue(2)
	for name := range minutes {
		if !slices.Contains(slices.Collect(maps.Values(later)), name) {
			if err := q.register(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	var begun []string
	for len(q.waiting)+len(q.running) > 0 {
		for next, ok := q.next(); ok; next, ok = q.next() {
			begun = append(begun, fmt.Sprintf("%s beside %v", next.name, q.begin(next.name)))
		}
		if len(q.running) == 0 {
			t.Fatalf("nothing runs, and %v wait", q.waiting)
		}
		for _, r := range slices.Clone(q.running) {
			if minutes[r.name]--; minutes[r.name] == 0 {
				if err := q.leave(r.name, later[r.name]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	want := []string{"TestAlerts beside []", "TestIncident beside [TestAlerts]", "TestAccess beside [TestAlerts]",
		"TestBadManifests beside []", "TestRolloutFaults beside []", "TestWorker beside [TestRolloutFaults]",
		"TestWorker without operator beside []", "TestAccess without operator beside []", "TestFiveNodes beside []", "TestDeletion beside []"}
	if !slices.Equal(begun, want) {
		t.Errorf("they began as %q instead of %q", begun, want)
	}
	if err := q.register("TestUnknown"); err == nil {
		t.Error("a scenario without a turn was accepted")
	}
}
