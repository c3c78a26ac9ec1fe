package contract

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/runnel-mesh/runnel/sdk/runnel"
)

// memberVariable holds a memberOrder where the test binary is started as a member of a
// group, so that a member can die as a process does.
const memberVariable = "RUNNEL_CONTRACT_MEMBER"

const (
	// commitInterval is how often a member commits: more is read again after its death.
	commitInterval = 250 * time.Millisecond
	// handOverLimit is how long a member that gives partitions up tries to commit.
	handOverLimit = 5 * time.Second
)

type memberOrder struct {
	Name, Group, Topic string
	Bootstrap          []string
	SessionTimeout     time.Duration
	// HandOver is how long a member that gives partitions up has something else to do
	// before it commits: who gets them without waiting for that is caught.
	HandOver time.Duration
}

// memberEvent is a line that a member writes, once what it tells of has happened.
type memberEvent struct {
	Kind string
	// At is when, Asked when what is told of began, in nanoseconds since 1970.
	At, Asked int64
	// Partitions of an assignment.
	Partitions []int32 `json:",omitempty"`
	// Partition, Offset of the first and Values of records that were processed.
	Partition int32    `json:",omitempty"`
	Offset    int64    `json:",omitempty"`
	Values    []string `json:",omitempty"`
	// Committed holds the offsets that the cluster has acknowledged.
	Committed map[int32]int64 `json:",omitempty"`
}

const (
	memberAssigned  = "assigned"
	memberRevoked   = "revoked"
	memberLost      = "lost"
	memberProcessed = "processed"
	memberCommitted = "committed"
)

// beMember is the program of a member: it processes records at least once, and says
// what it does on its standard output. It leaves when its input ends, and returns the
// exit code.
func beMember(order string) int {
	m := &member{done: make(map[int32]sdk.GroupOffset), out: json.NewEncoder(os.Stdout)}
	err := json.Unmarshal([]byte(order), &m.order)
	if err == nil {
		err = m.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type member struct {
	order    memberOrder
	consumer *sdk.Consumer
	// done is behind what was processed of the partitions that the member has. It is
	// used by Poll and Close only.
	done map[int32]sdk.GroupOffset

	mu  sync.Mutex
	out *json.Encoder
}

func (m *member) say(e memberEvent) {
	e.At = time.Now().UnixNano()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.out.Encode(e); err != nil {
		panic(err)
	}
}

func (m *member) run() error {
	client, err := sdk.NewClient(m.order.Bootstrap...)
	if err != nil {
		return err
	}
	defer client.Close()
	m.consumer, err = client.NewConsumer(sdk.WithGroup(m.order.Group), sdk.WithReset(sdk.ResetEarliest), sdk.WithAutoCommit(0),
		sdk.WithSessionTimeout(m.order.SessionTimeout), sdk.WithRebalance(sdk.Rebalance{
			Assigned: func(_ context.Context, partitions []sdk.TopicPartition) {
				m.say(memberEvent{Kind: memberAssigned, Partitions: numbers(partitions)})
			},
			Revoked: func(ctx context.Context, partitions []sdk.TopicPartition) {
				m.giveUp(ctx, numbers(partitions))
				m.say(memberEvent{Kind: memberRevoked, Partitions: numbers(partitions)})
			},
			Lost: func(_ context.Context, partitions []sdk.TopicPartition) {
				for _, p := range numbers(partitions) {
					delete(m.done, p)
				}
				m.say(memberEvent{Kind: memberLost, Partitions: numbers(partitions)})
			},
		}))
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		leave()
	}()
	if err := m.consumer.Subscribe(ctx, m.order.Topic); err != nil {
		return err
	}
	for committed := time.Now(); ; {
		records, err := m.consumer.Poll(ctx)
		if ctx.Err() != nil {
			return m.consumer.Close()
		}
		if err != nil {
			return err
		}
		m.process(records)
		if time.Since(committed) >= commitInterval {
			committed = time.Now()
			var offsets []sdk.GroupOffset
			for _, o := range m.done {
				offsets = append(offsets, o)
			}
			m.consumer.CommitAsync(func(err error) { m.sayCommitted(committed, offsets, err) }, offsets...)
		}
	}
}

func (m *member) process(records sdk.Records) {
	batches := make(map[int32]*memberEvent)
	for r := range records.All() {
		b := batches[r.Partition]
		if b == nil {
			b = &memberEvent{Kind: memberProcessed, Partition: r.Partition, Offset: r.Offset}
			batches[r.Partition] = b
		}
		if want := b.Offset + int64(len(b.Values)); r.Offset != want {
			panic(fmt.Sprintf("Poll returns offset %d of partition %d where %d is due", r.Offset, r.Partition, want))
		}
		b.Values = append(b.Values, string(r.Value))
		m.done[r.Partition] = sdk.After(r)
	}
	for _, b := range batches {
		m.say(*b)
	}
}

// giveUp commits what was processed of partitions that others get.
func (m *member) giveUp(ctx context.Context, partitions []int32) {
	var offsets []sdk.GroupOffset
	for _, p := range partitions {
		if o, ok := m.done[p]; ok {
			offsets = append(offsets, o)
			delete(m.done, p)
		}
	}
	if len(offsets) == 0 {
		return
	}
	<-time.After(m.order.HandOver)
	ctx, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	asked := time.Now()
	m.sayCommitted(asked, offsets, m.consumer.Commit(ctx, offsets...))
}

// sayCommitted tells which of the offsets are committed, given what Commit returned.
func (m *member) sayCommitted(asked time.Time, offsets []sdk.GroupOffset, err error) {
	e := memberEvent{Kind: memberCommitted, Asked: asked.UnixNano(), Committed: make(map[int32]int64)}
	partly, _ := errors.AsType[*sdk.CommitError](err)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if partly == nil {
			return
		}
	}
	for _, o := range offsets {
		e.Committed[o.Partition] = o.Offset
	}
	if partly != nil {
		for _, f := range partly.Failed {
			delete(e.Committed, f.Partition)
		}
	}
	m.say(e)
}

func numbers(partitions []sdk.TopicPartition) []int32 {
	out := make([]int32, len(partitions))
	for i, p := range partitions {
		out[i] = p.Partition
	}
	return out
}

// memberProcess is a member as a process of its own.
type memberProcess struct {
	*process
	name  string
	leave io.Closer
	// take is given what the member says, in order; rest is the line that is not whole.
	take func(*memberProcess, memberEvent)
	rest []byte
	// tenures are the last that the member had of each partition. They are for take, and
	// for others once the process has ended.
	tenures []*tenure
}

// startMember starts the test binary as a member.
func startMember(t *testing.T, order memberOrder, partitions int, take func(*memberProcess, memberEvent)) *memberProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(self)
	command.Env = append(os.Environ(), memberVariable+"="+string(text))
	m := &memberProcess{process: newProcess(command), name: order.Name, take: take, tenures: make([]*tenure, partitions)}
	command.Stdout = lineWriter{m}
	if m.leave, err = command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := m.begin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("%s wrote to its standard error:\n%s", m.name, tail(m.output(), 4<<10))
		}
	})
	return m
}

// lineWriter decodes what a member writes. A line that death has cut short tells of
// nothing.
type lineWriter struct{ member *memberProcess }

func (w lineWriter) Write(b []byte) (int, error) {
	m := w.member
	m.rest = append(m.rest, b...)
	for {
		line, rest, whole := bytes.Cut(m.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		m.rest = rest
		var e memberEvent
		if err := json.Unmarshal(line, &e); err != nil {
			// Such as what the test framework writes.
			fmt.Fprintln(m.process, strings.TrimSpace(string(line)))
			continue
		}
		m.take(m, e)
	}
}
