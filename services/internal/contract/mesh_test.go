package contract

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// mesh is a cluster of one process per service beside a real etcd.
type mesh struct {
	etcd                            *node
	metadata, storage, coordinators []*node
}

// startMesh starts a cluster with so many metadata, storage and coordinator nodes.
func startMesh(t *testing.T, metadata, storage, coordinators int) *mesh {
	t.Helper()
	runnel := runnelProgram(t)
	client, peer := freeAddress(t), freeAddress(t)
	m := &mesh{etcd: &node{
		program: program(t, "go.etcd.io/etcd/server/v3"), address: client, ready: "http://" + client + "/health",
		args: []string{
			"--data-dir", t.TempDir(), "--log-level", "error",
			"--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
			"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer, "--initial-cluster", "default=http://" + peer,
		},
	}}
	id := int32(0)
	add := func(service, peerAddress string, flags ...string) *node {
		address := freeAddress(t)
		id++
		return &node{
			program: runnel, id: id, address: address, ready: "http://" + address + "/readyz",
			args: append([]string{service, "--node-id", fmt.Sprint(id), "--data-dir", t.TempDir(), "--listen", address, "--peer-listen", peerAddress}, flags...),
		}
	}
	var peers []string
	for range metadata {
		peers = append(peers, freeAddress(t))
		m.metadata = append(m.metadata, add("metadata", peers[len(peers)-1], "--etcd-endpoints", client))
	}
	for range storage {
		m.storage = append(m.storage, add("storage", freeAddress(t), "--metadata", strings.Join(peers, ",")))
	}
	for range coordinators {
		m.coordinators = append(m.coordinators, add("coordinator", freeAddress(t), "--metadata", strings.Join(peers, ",")))
	}
	t.Cleanup(func() {
		for _, n := range m.nodes() {
			if p := n.process(); p != nil {
				p.end(t)
			}
		}
	})
	m.start(t)
	return m
}

// nodes returns all processes.
func (m *mesh) nodes() []*node {
	return slices.Concat([]*node{m.etcd}, m.metadata, m.storage, m.coordinators)
}

// node returns the process of that number.
func (m *mesh) node(t *testing.T, id int32) *node {
	t.Helper()
	i := slices.IndexFunc(m.nodes(), func(n *node) bool { return n.id == id })
	if i < 0 || id == 0 {
		t.Fatalf("there is no node %d", id)
	}
	return m.nodes()[i]
}

// start starts all processes at once, and waits until they are ready.
func (m *mesh) start(t *testing.T) {
	t.Helper()
	for _, n := range m.nodes() {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range m.nodes() {
		if err := n.await(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// kill ends all processes as a crash of the machine's processes would, one right
// after another.
func (m *mesh) kill() {
	for _, n := range m.nodes() {
		_ = n.process().command.Process.Kill()
	}
	for _, n := range m.nodes() {
		n.process().kill()
	}
}

// bootstrap returns the addresses of all nodes that serve clients.
func (m *mesh) bootstrap() []string {
	var all []string
	for _, n := range slices.Concat(m.metadata, m.storage, m.coordinators) {
		all = append(all, n.address)
	}
	return all
}

// TestContract holds every shape of a cluster to the same contract, through the
// command line, and of consumer groups through the SDK.
func TestContract(t *testing.T) {
	t.Run("one process", func(t *testing.T) {
		cluster := startUp(t)
		contract(t, []string{cluster.address}, 1)
	})
	t.Run("3 storage, 2 metadata and 2 coordinator nodes", func(t *testing.T) {
		m := startMesh(t, 2, 3, 2)
		// Any address of any role is a bootstrap address.
		contract(t, m.bootstrap(), 3)
	})
}

// contract does the same through each address. Topics are to have so many replicas
// where nothing is said about that.
func contract(t *testing.T, bootstraps []string, replicas int) {
	for i, bootstrap := range bootstraps {
		topic := fmt.Sprintf("orders-%d", i)
		runnel(t, bootstrap, nil, "topics", "create", topic, "--partitions", "3", "--config", "retention.ms=3600000").mustSucceed(t)
		if list := runnel(t, bootstrap, nil, "topics", "list").mustSucceed(t); !strings.Contains(list.stdout, topic) {
			t.Errorf("%s is not in the list:\n%s", topic, list.stdout)
		}
		input := "a:1\nb:2\nno key\na:3\n:empty key\nlast without line feed:\r"
		produced := runnel(t, bootstrap, strings.NewReader(input), "produce", topic, "--key-separator", ":").mustSucceed(t)
		if !strings.Contains(produced.stderr, "6") {
			t.Errorf("the summary does not count 6 records: %s", produced.stderr)
		}
		read := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end", "-o", "json").mustSucceed(t)
		compareByKeyOf(t, topic, read.stdout, map[string][]string{"a": {"1", "3"}, "b": {"2"}, "": {"empty key", "no key"}, "last without line feed": {"\r"}})

		described := runnel(t, bootstrap, nil, "topics", "describe", topic, "-o", "json").mustSucceed(t)
		if !json.Valid([]byte(described.stdout)) || !strings.Contains(described.stdout, "3600000") {
			t.Errorf("describe answers %s", described.stdout)
		}
		replicated(t, bootstrap, topic, replicas)
		nodes := runnel(t, bootstrap, nil, "cluster", "describe").mustSucceed(t)
		for _, word := range []string{"metadata", "storage", "coordinator", "live"} {
			if !strings.Contains(nodes.stdout, word) {
				t.Errorf("cluster describe does not say %q:\n%s", word, nodes.stdout)
			}
		}
		runnel(t, bootstrap, nil, "topics", "alter", topic, "--config", "retention.bytes=1000000000", "--unset", "retention.ms").mustSucceed(t)
		altered := runnel(t, bootstrap, nil, "topics", "describe", topic, "-o", "json").mustSucceed(t)
		if strings.Contains(altered.stdout, "3600000") || !strings.Contains(altered.stdout, "1000000000") {
			t.Errorf("altered, describe answers %s", altered.stdout)
		}
		runnel(t, bootstrap, nil, "topics", "delete-records", topic, "--before", "0:end", "--before", "1:end", "--before", "2:end").mustSucceed(t)
		if rest := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end").mustSucceed(t); rest.stdout != "" {
			t.Errorf("after all records were deleted the topic holds %q", rest.stdout)
		}
		measured(t, bootstrap)
		grouped(t, bootstrap, fmt.Sprintf("shared-%d", i))
		runnel(t, bootstrap, nil, "topics", "delete", topic).mustSucceed(t)
		gone := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end")
		if gone.code != 1 || !strings.Contains(gone.stderr, topic) {
			t.Errorf("reading a deleted topic ends with code %d: %s", gone.code, gone.stderr)
		}
	}
}

// replicated: each partition has all its replicas in sync, and a leader among them.
func replicated(t *testing.T, bootstrap, topic string, replicas int) {
	t.Helper()
	var described struct {
		ReplicationFactor int `json:"replication_factor"`
		Partitions        []struct {
			Leader        *int32
			Replicas, ISR []int32
			Status        string
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for whole := false; !whole; {
		out := runnel(t, bootstrap, nil, "topics", "describe", topic, "-o", "json").mustSucceed(t).stdout
		if err := json.Unmarshal([]byte(out), &described); err != nil {
			t.Fatal(err)
		}
		whole = described.ReplicationFactor == replicas
		for _, p := range described.Partitions {
			whole = whole && p.Leader != nil && len(p.Replicas) == replicas && len(p.ISR) == replicas && p.Status == "ok" && slices.Contains(p.ISR, *p.Leader)
		}
		if !whole && time.Now().After(deadline) {
			t.Fatalf("topic %s wants %d replicas in sync in each partition: %s", topic, replicas, out)
		}
	}
	if well := runnel(t, bootstrap, nil, "topics", "describe", "--unhealthy", topic); well.code != 0 {
		t.Errorf("not all is well, code %d:\n%s%s", well.code, well.stdout, well.stderr)
	}
}

// measured: every process shows what it measures, at the address of its clients.
func measured(t *testing.T, address string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s/metrics: status %d, %v", address, response.StatusCode, err)
	}
	if !slices.ContainsFunc([]string{"storage_commit_seconds", "metadata_controller_active", "coordinator_join_streams"}, func(name string) bool {
		return strings.Contains(string(body), "# HELP runnel_"+name+" ")
	}) {
		t.Errorf("%s/metrics shows neither storage nor metadata nor a coordinator:\n%s", address, tail(string(body), 2000))
	}
}

func compareByKeyOf(t *testing.T, topic, output string, want map[string][]string) {
	t.Helper()
	got := make(map[string][]string)
	decoder := json.NewDecoder(strings.NewReader(output))
	for decoder.More() {
		var c consumed
		if err := decoder.Decode(&c); err != nil {
			t.Fatalf("%s: reading the output: %v", topic, err)
		}
		key := text(t, c.Key, c.KeyEncoding)
		got[key] = append(got[key], text(t, c.Value, c.ValueEncoding))
	}
	for key, values := range want {
		if key == "" {
			continue
		}
		if fmt.Sprint(got[key]) != fmt.Sprint(values) {
			t.Errorf("%s: key %q has %q, want %q", topic, key, got[key], values)
		}
	}
	if len(got[""]) != len(want[""]) {
		t.Errorf("%s: %d records with an empty key or none, want %d", topic, len(got[""]), len(want[""]))
	}
}
