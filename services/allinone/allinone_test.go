package allinone

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/grpcreflect/v2"
	"go.uber.org/goleak"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// childDir makes the test binary run a cluster in that directory instead of the
// tests, until it is killed.
const childDir = "RUNNEL_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(runChild(dir))
	}
	goleak.VerifyTestMain(m)
}

func runChild(dir string) int {
	config := DefaultConfig()
	config.DataDir, config.Listen = dir, "127.0.0.1:0"
	c, _, err := Start(context.Background(), config)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.Address())
	_, _ = io.Copy(io.Discard, os.Stdin) // Until the parent is gone, if it does not kill us.
	return 0
}

// testConfig is that of a cluster of a test.
func testConfig(t *testing.T) Config {
	config := DefaultConfig()
	config.DataDir, config.Listen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0"
	return config
}

func startCluster(t *testing.T, config Config) (*Cluster, func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	c, stop, err := Start(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s", time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return c, stop
}

// clients are the generated clients of a cluster.
type clients struct {
	topics  metadatav1connect.TopicServiceClient
	cluster metadatav1connect.ClusterServiceClient
	log     storagev1connect.LogServiceClient
}

func connectTo(t *testing.T, address string) clients {
	t.Helper()
	pool := transport.NewPool(transport.Options{})
	t.Cleanup(pool.Close)
	client := connect.NewClient(pool.Transport(address, transport.Control))
	return clients{
		topics:  metadatav1connect.NewTopicServiceClient(client),
		cluster: metadatav1connect.NewClusterServiceClient(client),
		log:     storagev1connect.NewLogServiceClient(client),
	}
}

func (c clients) createTopic(t *testing.T, name string) {
	t.Helper()
	if _, err := c.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: name, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	c.awaitTopic(t, name)
}

// awaitTopic waits until the storage node has heard of a topic too.
func (c clients) awaitTopic(t *testing.T, name string) {
	t.Helper()
	earliest := &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}
	for {
		response, err := c.log.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{
			Partitions: []*storagev1.PartitionPosition{{Topic: name, Position: earliest}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if response.GetPartitions()[0].GetFailure() == nil {
			return
		}
	}
}

func (c clients) append(ctx context.Context, topic, value string) (int64, error) {
	response, err := c.log.Append(ctx, &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
		Topic: topic, Acks: logv1.Acks_ACKS_ALL, Records: []*logv1.Record{{Value: []byte(value)}},
	}})
	return response.GetResult().GetBaseOffset(), err
}

// values reads a topic from its beginning to its end.
func (c clients) values(t *testing.T, topic string) []string {
	t.Helper()
	stream, err := c.log.Consume(t.Context(), &storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{{Topic: topic, Start: &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}}},
		Form:       storagev1.RecordForm_RECORD_FORM_RECORDS, StopAtEnd: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var values []string
	for {
		response, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return values
		}
		if err != nil {
			t.Fatal(err)
		}
		if f := response.GetFailure(); f != nil {
			t.Fatal(f)
		}
		for _, r := range response.GetRecords() {
			values = append(values, string(r.GetValue()))
		}
	}
}

func TestServesAndKeepsDataOverRestarts(t *testing.T) {
	config := testConfig(t)
	logs := &strings.Builder{}
	config.Logger = slog.New(withoutSlowness{Handler: slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelWarn})})
	c, stop := startCluster(t, config)
	client := connectTo(t, c.Address())
	client.createTopic(t, "t")
	for i := range 3 {
		if offset, err := client.append(t.Context(), "t", fmt.Sprint(i)); err != nil || offset != int64(i) {
			t.Fatal(offset, err)
		}
	}
	begin := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped after %s", time.Since(begin).Round(time.Millisecond))
	if err := c.Ready(t.Context()); err == nil {
		t.Error("ready after the stop")
	}

	c, _ = startCluster(t, config)
	client = connectTo(t, c.Address())
	if got := client.values(t, "t"); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("read %q", got)
	}
	if _, err := client.append(t.Context(), "t", "3"); err != nil {
		t.Error(err)
	}
	if logs.Len() > 0 {
		t.Errorf("logged:\n%s", logs)
	}
}

// withoutSlowness drops the warnings of etcd, which are about how long something has
// taken: that is the doing of the machine that the test runs on. What fails in etcd is
// an error there.
type withoutSlowness struct {
	slog.Handler

	etcd bool
}

func (h withoutSlowness) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, level) && (!h.etcd || level >= slog.LevelError)
}

func (h withoutSlowness) WithAttrs(attrs []slog.Attr) slog.Handler {
	etcd := slices.ContainsFunc(attrs, func(a slog.Attr) bool { return a.Equal(slog.String("service", "etcd")) })
	return withoutSlowness{h.Handler.WithAttrs(attrs), h.etcd || etcd}
}

func TestStopReleasesStreams(t *testing.T) {
	c, stop := startCluster(t, testConfig(t))
	client := connectTo(t, c.Address())
	client.createTopic(t, "t")
	if _, err := client.append(t.Context(), "t", "x"); err != nil {
		t.Fatal(err)
	}
	consume, err := client.log.Consume(t.Context(), &storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{{Topic: "t", Start: &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := client.cluster.WatchCluster(t.Context(), &metadatav1.WatchClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	produce, err := client.log.Produce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := produce.Send(&storagev1.ProduceRequest{Topic: "t", Records: []*logv1.Record{{Value: []byte("y")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := produce.Receive(); err != nil {
		t.Fatal(err)
	}
	for _, receive := range []func() error{
		func() error { _, err := consume.Receive(); return err },
		func() error { _, err := watch.Receive(); return err },
	} {
		if err := receive(); err != nil {
			t.Fatal(err)
		}
	}

	begin := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for name, receive := range map[string]func() error{
		"consume": func() error { _, err := consume.Receive(); return err },
		"watch":   func() error { _, err := watch.Receive(); return err },
		"produce": func() error { _, err := produce.Receive(); return err },
	} {
		err := receive()
		for err == nil {
			err = receive()
		}
		if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "draining") {
			t.Errorf("%s ended with %v", name, err)
		}
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the stop took %s", took)
	}
}

// A consumer that does not read keeps the stop waiting for no longer than it
// takes to give it up.
func TestStalledConsumerDoesNotHoldUpTheStop(t *testing.T) {
	c, stop := startCluster(t, testConfig(t))
	client := connectTo(t, c.Address())
	client.createTopic(t, "t")
	value := strings.Repeat("x", 500_000)
	for range 20 {
		if _, err := client.append(t.Context(), "t", value); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.log.Consume(t.Context(), &storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{{Topic: "t", Start: &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the stop took %s", took)
	}
}

func TestSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for round := range 3 {
		address, kill := startChild(t, dir)
		client := connectTo(t, address)
		if round == 0 {
			client.createTopic(t, "t")
		}
		if got := client.values(t, "t"); !slices.Equal(got, want) {
			t.Fatalf("round %d: read %q, want %q", round, got, want)
		}
		for i := range 5 {
			value := fmt.Sprintf("%d/%d", round, i)
			if _, err := client.append(t.Context(), "t", value); err != nil {
				t.Fatal(err)
			}
			want = append(want, value)
		}
		kill()
	}
}

// startChild runs a cluster in a process of its own, which kill ends with SIGKILL.
func startChild(t *testing.T, dir string) (address string, kill func()) {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), childDir+"="+dir)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		_ = stdin.Close()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	t.Logf("ready after %s", time.Since(begin).Round(time.Millisecond))
	return strings.TrimSpace(line), kill
}

func TestOnePortServesEverythingPublicAndNothingElse(t *testing.T) {
	c, _ := startCluster(t, testConfig(t))
	pool := transport.NewPool(transport.Options{})
	defer pool.Close()
	target := pool.Transport(c.Address(), transport.Control)
	reflection := grpcreflect.NewClient(connect.NewClient(target)).NewStream(t.Context())
	names, err := reflection.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	_ = reflection.Close()
	var got []string
	for _, n := range names {
		got = append(got, string(n))
	}
	want := []string{
		"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
		"runnel.coordinator.v1.GroupService", "runnel.coordinator.v1.OffsetService",
		"runnel.metadata.v1.ClusterService", "runnel.metadata.v1.TopicService", "runnel.storage.v1.LogService",
	}
	if !slices.Equal(got, want) {
		t.Errorf("services %q", got)
	}
	for path, code := range map[string]int{
		"/metrics": http.StatusOK, "/healthz": http.StatusOK, "/readyz": http.StatusOK,
		"/runnel.metadata.peer.v1.NodeService/Heartbeat": http.StatusNotFound,
		"/v3/kv/range": http.StatusNotFound,
	} {
		response, err := http.Get("http://" + c.Address() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != code {
			t.Errorf("%s: %s", path, response.Status)
		}
		if path == "/metrics" && !strings.Contains(string(body), "runnel_rpc_connections") {
			t.Errorf("metrics:\n%s", body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cluster, err := connectTo(t, c.Address()).cluster.GetCluster(t.Context(), &metadatav1.GetClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range cluster.GetCluster().GetNodes() {
		if n.GetAddress() != c.Address() || n.GetFenced() {
			t.Errorf("node %v", n)
		}
	}
	if n := len(cluster.GetCluster().GetNodes()); n != 3 {
		t.Errorf("%d nodes", n)
	}
}

func TestPortInUse(t *testing.T) {
	c, _ := startCluster(t, testConfig(t))
	second := testConfig(t)
	second.Listen = c.Address()
	_, _, err := Start(t.Context(), second)
	if err == nil || !strings.Contains(err.Error(), "another runnel serves at "+c.Address()) || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("%v", err)
	}
	if _, statErr := os.Stat(second.DataDir); !errors.Is(statErr, os.ErrNotExist) {
		t.Errorf("the data directory was touched: %v", statErr)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	second.Listen = listener.Addr().String()
	_, _, err = Start(t.Context(), second)
	if err == nil || !strings.Contains(err.Error(), "another program listens at "+second.Listen) {
		t.Errorf("%v", err)
	}
	second.Listen = "203.0.113.1:7070"
	_, _, err = Start(t.Context(), second)
	if err == nil || !strings.Contains(err.Error(), "203.0.113.1:7070") || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("%v", err)
	}
}

func TestDataDirectoryThatCannotBeUsed(t *testing.T) {
	t.Run("locked", func(t *testing.T) {
		config := testConfig(t)
		startCluster(t, config)
		_, _, err := Start(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), config.DataDir+" is in use by process "+fmt.Sprint(os.Getpid())) || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("%v", err)
		}
	})
	t.Run("not a directory", func(t *testing.T) {
		config := testConfig(t)
		if err := os.WriteFile(config.DataDir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := Start(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), config.DataDir) || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("%v", err)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		config := testConfig(t)
		config.DataDir = "/sys/runnel" // Nobody may create files there, root neither.
		_, _, err := Start(t.Context(), config)
		if err == nil || !strings.Contains(err.Error(), config.DataDir) || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("%v", err)
		}
	})
	for name, content := range map[string]string{"newer": `{"formatVersion":2,"more":true}`, "damaged": `{"formatV`} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(config.DataDir, layoutFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := Start(t.Context(), config)
			if err == nil || !strings.Contains(err.Error(), config.DataDir) || strings.Contains(err.Error(), "format 2, this release knows 1") != (name == "newer") {
				t.Errorf("%v", err)
			}
			if entries, _ := os.ReadDir(filepath.Join(config.DataDir, "etcd")); len(entries) > 0 {
				t.Errorf("something was written: %v", entries)
			}
			after, _ := os.ReadFile(filepath.Join(config.DataDir, layoutFile))
			if string(after) != content {
				t.Errorf("the layout file was changed: %s", after)
			}
		})
	}
}

func TestStopWhileStarting(t *testing.T) {
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		c, err := New(testConfig(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stopped after %s: %v", after, err)
		}
		cancel()
	}
}

func TestValidateNamesAllFaults(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Listen: "nonsense", Advertise: "h:0", EtcdQuotaBytes: 1, Grace: -1})
	for _, key := range []string{"DataDir", "Listen", "Advertise", "EtcdQuotaBytes", "Grace", "MaxConnections"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is missing in: %v", key, err)
		}
	}
	config := DefaultConfig()
	config.Metadata.LeaseTTL = time.Millisecond
	config.Storage.GroupBytes = 0
	_, err = New(config)
	for _, key := range []string{"LeaseTTL", "GroupBytes"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is missing in: %v", key, err)
		}
	}
	if _, err := New(DefaultConfig()); err != nil {
		t.Error(err)
	}
}

func TestAdvertised(t *testing.T) {
	t.Parallel()
	real := &net.TCPAddr{IP: net.IPv4zero, Port: 4711}
	for _, tc := range []struct{ listen, advertise, want string }{
		{"127.0.0.1:0", "", "127.0.0.1:4711"},
		{":0", "", "127.0.0.1:4711"},
		{"0.0.0.0:0", "", "127.0.0.1:4711"},
		{"[::]:0", "", "127.0.0.1:4711"},
		{"localhost:0", "", "localhost:4711"},
		{":0", "runnel.example:443", "runnel.example:443"},
	} {
		if got := (Config{Listen: tc.listen, Advertise: tc.advertise}).advertised(real); got != tc.want {
			t.Errorf("listen %q, advertise %q: %q, want %q", tc.listen, tc.advertise, got, tc.want)
		}
	}
}
