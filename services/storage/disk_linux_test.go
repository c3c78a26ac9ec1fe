package storage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/google/uuid"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/loopdisk"
)

// nodeDirectory makes the test binary a storage node on that directory, with a
// metadata service of its own. It prints its address when it is ready, and deletes
// the topic "doomed" when it reads "delete".
const nodeDirectory = "RUNNEL_STORAGE_TEST_NODE_DIRECTORY"

// doomedTopic is the id of the topic "doomed", the same in each process.
var doomedTopic = uuid.MustParse("22222222-2222-3333-4444-555555555555")

func runAsNode() bool {
	dir := os.Getenv(nodeDirectory)
	if dir == "" {
		return false
	}
	if err := serveNode(dir); err != nil {
		fmt.Fprintln(os.Stderr, "runnel:", err)
		os.Exit(1)
	}
	return true
}

func serveNode(dir string) error {
	m := startMetadata()
	orders := m.snapshot.GetTopics()[0]
	id := uuid.MustParse("33333333-2222-3333-4444-555555555555")
	orders.TopicId = id[:]
	m.snapshot.Topics = append(m.snapshot.Topics, &metadatav1.Topic{
		TopicId: doomedTopic[:], Name: "doomed", PartitionCount: 1, Config: map[string]string{"durability": "replicated"},
		Partitions: []*metadatav1.Partition{{LeaderId: 4, Replicas: []int32{4}, Isr: []int32{4}, LastLeaderId: 4, LeaderEpoch: 1000}},
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := DefaultConfig()
	config.DataDir, config.Listen, config.Grace = dir, listener.Addr().String(), time.Second
	config.VolumeBytes = 32 << 20
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s := New(config, Deps{Metadata: m.transport, Logger: logger})
	public, peer := rpc.NewServer(rpc.ServerOptions{}), rpc.NewServer(rpc.ServerOptions{})
	s.Register(public, peer)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var serving sync.WaitGroup
	serving.Go(func() { _ = rpc.Serve(ctx, rpc.ServeOptions{Listener: listener, Server: public, Grace: time.Second}) })
	go func() {
		if s.Ready(ctx) == nil {
			fmt.Println("ready", listener.Addr())
		}
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			switch lines.Text() {
			case "delete":
				m.mu.Lock()
				m.snapshot.Topics = m.snapshot.Topics[:1]
				m.snapshot.DeletedTopicIds = append(m.snapshot.DeletedTopicIds, doomedTopic[:])
				m.publish()
				m.mu.Unlock()
			case "stop":
				cancel()
			}
		}
	}()
	err = s.Run(ctx)
	cancel()
	serving.Wait()
	return err
}

// nodeProcess is a storage node in a process of its own.
type nodeProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	client storagev1connect.LogServiceClient
	ended  chan struct{}
	// log is complete once ended is closed.
	mu  sync.Mutex
	log bytes.Buffer
}

func (n *nodeProcess) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.Write(p)
}

func (n *nodeProcess) output() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// startNode starts a node and returns once it is ready, or has ended.
func startNode(t *testing.T, dir string) (n *nodeProcess, ready bool) {
	t.Helper()
	n = &nodeProcess{t: t, cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	n.cmd.Env = append(os.Environ(), nodeDirectory+"="+dir)
	n.cmd.Stderr = n
	var err error
	if n.stdin, err = n.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addresses := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if address, ok := strings.CutPrefix(lines.Text(), "ready "); ok {
				addresses <- address
			}
		}
		_ = n.cmd.Wait()
		close(n.ended)
	}()
	t.Cleanup(n.kill)
	select {
	case address := <-addresses:
		pool := transport.NewPool(transport.Options{})
		t.Cleanup(pool.Close)
		n.client = storagev1connect.NewLogServiceClient(connect.NewClient(pool.Transport(address, transport.Control)))
		return n, true
	case <-n.ended:
		return n, false
	case <-time.After(time.Minute):
		t.Fatalf("the node does not start:\n%s", n.output())
		return n, false
	}
}

func (n *nodeProcess) kill() {
	_ = n.cmd.Process.Kill()
	<-n.ended
}

// alive fails the test if the process has ended.
func (n *nodeProcess) alive() {
	n.t.Helper()
	select {
	case <-n.ended:
		n.t.Fatalf("the node has ended: %v\n%s", n.cmd.ProcessState, n.output())
	default:
	}
}

func (n *nodeProcess) append(topic string, size int) (int64, error) {
	value := strings.Repeat("v", size)
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	res, err := n.client.Append(ctx, &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: topic, Records: []*logv1.Record{{ValueText: &value}},
	}})
	return res.GetResult().GetBaseOffset(), err
}

// appendUntilFull appends until it is refused, and returns the last offset.
func (n *nodeProcess) appendUntilFull(topic string, size int) (last int64) {
	n.t.Helper()
	for last = -1; ; {
		offset, err := n.append(topic, size)
		if err != nil {
			n.wantFull(err)
			return last
		}
		last = offset
	}
}

func (n *nodeProcess) wantFull(err error) {
	n.t.Helper()
	if rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_DISK_FULL {
		n.t.Fatalf("refused with %v\n%s", err, n.output())
	}
	for _, part := range []string{"storage", "MiB are free", "make room"} {
		if !strings.Contains(err.Error(), part) {
			n.t.Errorf("%q does not say %q", err, part)
		}
	}
}

// read reads the record at an offset, from the disk or a cache.
func (n *nodeProcess) read(topic string, offset int64) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	stream, err := n.client.Consume(ctx, &storagev1.ConsumeRequest{
		Form: storagev1.RecordForm_RECORD_FORM_RECORDS, MaxRecords: 1,
		Partitions: []*storagev1.PartitionStart{{Topic: topic, Start: &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: offset}}}},
	})
	if err != nil {
		return err
	}
	res, err := stream.Receive()
	if err != nil {
		return err
	}
	if r := res.GetRecords(); len(r) == 0 || r[0].GetOffset() != offset {
		return fmt.Errorf("got %d records, failure %v", len(r), res.GetFailure())
	}
	return nil
}

func (n *nodeProcess) deleteBefore(topic string, offset int64) error {
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	res, err := n.client.DeleteRecords(ctx, &storagev1.DeleteRecordsRequest{Partitions: []*storagev1.PartitionPosition{
		{Topic: topic, Position: &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: offset}}},
	}})
	if err != nil {
		return err
	}
	if f := res.GetPartitions()[0].GetFailure(); f != nil {
		return errors.New(f.GetMessage())
	}
	return nil
}

// until waits for something that the node does on its own.
func (n *nodeProcess) until(what string, condition func() bool) {
	n.t.Helper()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-deadline:
			n.t.Fatalf("%s did not happen\n%s", what, n.output())
		case <-n.ended:
			n.alive()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestFullDisk fills a small disk: first with records, then with the file of
// another program, under a node in a process of its own.
func TestFullDisk(t *testing.T) {
	disk := loopdisk.New(t, 400<<20)
	dir := filepath.Join(disk.Dir, "data")
	n, ready := startNode(t, dir)
	if !ready {
		t.Fatal(n.output())
	}
	ballast := filepath.Join(dir, "storage", "ballast")
	n.until("a ballast", func() bool { _, err := os.Stat(ballast); return err == nil })
	var doomed int64
	for range 40 {
		offset, err := n.append("doomed", 500<<10)
		if err != nil {
			t.Fatal(err)
		}
		doomed = offset
	}
	last := n.appendUntilFull("orders", 500<<10)
	if free := disk.Free(t); free < 30<<20 {
		t.Errorf("records were taken until %d bytes were free", free)
	}
	if last < 300 {
		t.Errorf("only %d records were taken", last+1)
	}

	// Another program takes what was left. The node goes on but for records.
	aliens := []string{disk.Fill(t)}
	n.until("the ballast being given up", func() bool { _, err := os.Stat(ballast); return err != nil })
	aliens = append(aliens, disk.Fill(t))
	for i := range 20 {
		_, err := n.append("orders", 1+i*1000)
		n.wantFull(err)
		if err := errors.Join(n.read("orders", 0), n.read("orders", last), n.read("doomed", doomed)); err != nil {
			t.Fatalf("%v\n%s", err, n.output())
		}
	}
	first := last / 2
	if err := n.deleteBefore("orders", first); err != nil {
		t.Fatalf("records cannot be deleted: %v\n%s", err, n.output())
	}
	fmt.Fprintln(n.stdin, "delete")
	n.until("the deletion of a topic", func() bool { return strings.Contains(n.output(), "partition deleted") })
	if err := n.read("orders", first-1); err == nil {
		t.Error("a deleted record is read")
	}
	n.alive()

	// A process that is killed on a full disk cannot repair its volumes: it says so.
	aliens = append(aliens, disk.Fill(t))
	n.kill()
	aliens = append(aliens, disk.Fill(t))
	if n, ready = startNode(t, dir); ready {
		t.Log("the node could repair its volumes")
		n.wantFull(second(n.append("orders", 10)))
		n.kill()
	} else if out := n.output(); n.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out, "the disk is full") || !strings.Contains(out, "make room") {
		t.Fatalf("%v\n%s", n.cmd.ProcessState, out)
	}

	// Space that returns is used.
	for _, alien := range aliens {
		if err := os.Remove(alien); err != nil {
			t.Fatal(err)
		}
	}
	if n, ready = startNode(t, dir); !ready {
		t.Fatal(n.output())
	}
	if err := errors.Join(n.read("orders", first), n.read("orders", last)); err != nil {
		t.Fatal(err)
	}
	offset, err := n.append("orders", 10)
	if err != nil || offset != last+1 {
		t.Fatalf("offset %d, want %d; %v\n%s", offset, last+1, err, n.output())
	}
	alien := disk.Fill(t)
	n.until("records being refused", func() bool {
		_, err := n.append("orders", 10)
		return rpcerr.ReasonOf(err) == errorsv1.Reason_REASON_DISK_FULL
	})
	if err := os.Remove(alien); err != nil {
		t.Fatal(err)
	}
	n.until("records being taken without a restart", func() bool { _, err := n.append("orders", 10); return err == nil })

	// After a clean stop there is nothing to repair: it serves what it has.
	fmt.Fprintln(n.stdin, "stop")
	<-n.ended
	if n.cmd.ProcessState.ExitCode() != 0 {
		t.Fatalf("%v\n%s", n.cmd.ProcessState, n.output())
	}
	disk.Fill(t)
	if n, ready = startNode(t, dir); !ready {
		t.Fatal(n.output())
	}
	if err := errors.Join(n.read("orders", first), n.read("orders", last)); err != nil {
		t.Error(err)
	}
	n.wantFull(second(n.append("orders", 10)))
	n.alive()
}

func second[T any](_ T, err error) error { return err }
