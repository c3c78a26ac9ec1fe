package allinone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// damagedRecords is how many records the topics of a damaged cluster have at least.
const damagedRecords = 60

// damagedCluster is a cluster of which a test damages files. The topic "broken" lies
// in several volumes, and "sound" in others.
type damagedCluster struct {
	t      *testing.T
	config Config
	clients
	address string
	stop    func() error
	client  *runnel.Client
	// records is how many "broken" has.
	records int
}

func newDamagedCluster(t *testing.T) *damagedCluster {
	d := &damagedCluster{t: t, config: testConfig(t)}
	d.config.Storage.VolumeBytes = 64 << 10
	// Consumers shall meet what lies on the disk.
	d.config.Storage.TailBytes = 0
	d.start()
	for topic, durability := range map[string]string{"broken": "synced", "sound": "replicated"} {
		spec := runnel.TopicSpec{Name: topic, Partitions: 1, Config: map[string]string{"durability": durability}}
		if _, err := d.client.Admin().CreateTopic(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		d.awaitTopic(t, topic)
		for n := range damagedRecords {
			if _, err := d.append(t.Context(), topic, valueOf(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A volume is filled on until the next one is there, which takes its time on a slow
	// machine. The last one shall be one of several, and have records.
	for d.records = damagedRecords; ; d.records++ {
		if found := d.synced(); len(found) > 2 && d.holdsRecords(found[len(found)-1]) {
			return d
		}
		if _, err := d.append(t.Context(), "broken", valueOf(d.records)); err != nil {
			t.Fatal(err)
		}
	}
}

func valueOf(n int) string { return fmt.Sprintf("%d %s", n, strings.Repeat("x", 3000)) }

func (d *damagedCluster) start() {
	d.t.Helper()
	c, stop := startCluster(d.t, d.config)
	d.stop, d.address = stop, c.Address()
	d.clients = connectTo(d.t, c.Address())
	client, err := runnel.NewClient(c.Address())
	if err != nil {
		d.t.Fatal(err)
	}
	d.client = client
	d.t.Cleanup(func() { _ = client.Close() })
}

func (d *damagedCluster) restart(between func()) {
	d.t.Helper()
	if err := errors.Join(d.client.Close(), d.stop()); err != nil {
		d.t.Fatal(err)
	}
	between()
	d.start()
}

// volumes returns the folders of the volumes of "broken", oldest first.
func (d *damagedCluster) volumes() []string {
	d.t.Helper()
	found := d.synced()
	if len(found) < 3 {
		d.t.Fatalf("there are the volumes %q only", found)
	}
	return found
}

func (d *damagedCluster) synced() []string {
	d.t.Helper()
	var found []string
	err := filepath.WalkDir(d.config.DataDir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && regexp.MustCompile(`^synced-\d+$`).MatchString(e.Name()) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

func (d *damagedCluster) holdsRecords(folder string) bool {
	d.t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.vlog"))
	if err != nil {
		d.t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		raw, err := os.ReadFile(file)
		return err == nil && bytes.Contains(raw, []byte("xxxx"))
	})
}

// flip changes a byte in the midst of what a file holds.
func (d *damagedCluster) flip(folder, pattern string) {
	d.t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil || len(files) == 0 {
		d.t.Fatalf("no %s in %s: %v", pattern, folder, err)
	}
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer file.Close()
	raw, err := io.ReadAll(file)
	if err != nil {
		d.t.Fatal(err)
	}
	at := len(bytes.TrimRight(raw, "\x00")) / 2
	if _, err := file.WriteAt([]byte{raw[at] ^ 0x10}, int64(at)); err != nil {
		d.t.Fatal(err)
	}
}

// health asks grpc.health.v1 in the way in which curl does.
func (d *damagedCluster) health(service string) string {
	d.t.Helper()
	response, err := http.Post("http://"+d.address+"/grpc.health.v1.Health/Check", "application/json", strings.NewReader(`{"service":"`+service+`"}`))
	if err != nil {
		d.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return regexp.MustCompile(`[A-Z_]{5,}`).FindString(string(body))
}

func (d *damagedCluster) metric(name string) string {
	d.t.Helper()
	response, err := http.Get("http://" + d.address + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + `\S* (\S+)$`).FindSubmatch(body)
	if found == nil {
		d.t.Fatalf("there is no metric %s", name)
	}
	return string(found[1])
}

// failure returns why "broken" takes no records, as describe says, or nil.
func (d *damagedCluster) failure() error {
	d.t.Helper()
	topic, err := d.client.Admin().DescribeTopic(d.t.Context(), "broken")
	if err != nil {
		d.t.Fatal(err)
	}
	return topic.Replicas[0].Err
}

// read returns the offsets that can be read, in steps over what cannot.
func (d *damagedCluster) read(topic string) (offsets []int64) {
	d.t.Helper()
	list, err := d.client.Admin().ListOffsets(d.t.Context(), runnel.At(topic, 0, runnel.Earliest()), runnel.At(topic, 0, runnel.Latest()))
	if err != nil || list[0].Err != nil || list[1].Err != nil {
		d.t.Fatal(err, list)
	}
	next := list[0].Offset
	for next < list[1].Offset {
		consumer, err := d.client.NewConsumer()
		if err != nil {
			d.t.Fatal(err)
		}
		if err := consumer.Assign(d.t.Context(), runnel.At(topic, 0, runnel.Offset(next)).UntilEnd()); err != nil {
			d.t.Fatal(err)
		}
		for err == nil {
			var polled runnel.Records
			if polled, err = consumer.Poll(d.t.Context()); err != nil {
				break
			}
			for _, r := range polled.Slice() {
				if r.Offset < damagedRecords && string(r.Value) != valueOf(int(r.Offset)) {
					d.t.Fatalf("the record at %d is %.20q", r.Offset, r.Value)
				}
				offsets = append(offsets, r.Offset)
				next = r.Offset + 1
			}
		}
		_ = consumer.Close()
		if errors.Is(err, runnel.ErrEnd) {
			break
		}
		// The error names the next offset that is there.
		named := regexp.MustCompile(`consume from offset (\d+)`).FindStringSubmatch(err.Error())
		if named == nil {
			d.t.Fatalf("reading %s at %d: %v", topic, next, err)
		}
		if next, err = strconv.ParseInt(named[1], 10, 64); err != nil {
			d.t.Fatal(err)
		}
	}
	return offsets
}

// wantFailed checks everything that tells of a failed partition, and that all else
// goes on. It returns the offsets that are left.
func (d *damagedCluster) wantFailed() (left []int64) {
	d.t.Helper()
	left = d.read("broken")
	deadline := time.Now().Add(20 * time.Second)
	for d.failure() == nil {
		if time.Now().After(deadline) {
			d.t.Fatal("describe does not say that the partition has failed")
		}
	}
	if len(left) >= d.records {
		d.t.Errorf("%d records can be read", len(left))
	}
	if _, err := d.append(d.t.Context(), "broken", "more"); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_CORRUPT_LOG {
		d.t.Errorf("append: %v", err)
	}
	if got := d.health("runnel.storage.v1.partitions"); got != "NOT_SERVING" {
		d.t.Errorf("the health of the partitions is %s", got)
	}
	if got := d.health(""); got != "SERVING" {
		d.t.Errorf("the health of the node is %s", got)
	}
	if got := d.metric("runnel_storage_partitions_failed"); got != "1" {
		d.t.Errorf("%s partitions have failed", got)
	}
	if _, err := d.append(d.t.Context(), "sound", "more"); err != nil {
		d.t.Error(err)
	}
	if got := d.read("sound"); len(got) < damagedRecords {
		d.t.Errorf("%d records of the sound topic", len(got))
	}
	return left
}

// heal does what the error says, and checks that the partition is whole again.
func (d *damagedCluster) heal() {
	d.t.Helper()
	err := d.failure()
	named := regexp.MustCompile(`delete its records below offset (\d+)`).FindStringSubmatch(err.Error())
	if named == nil {
		d.t.Fatalf("the error names no remedy: %v", err)
	}
	offset, _ := strconv.ParseInt(named[1], 10, 64)
	if deleted, err := d.client.Admin().DeleteRecords(d.t.Context(), runnel.At("broken", 0, runnel.Offset(offset))); err != nil || deleted[0].Err != nil {
		d.t.Fatal(err, deleted)
	}
	for range 2 {
		if err := d.failure(); err != nil {
			d.t.Errorf("after deleting below %d: %v", offset, err)
		}
		if got := d.health("runnel.storage.v1.partitions"); got != "SERVING" {
			d.t.Errorf("the health of the partitions is %s", got)
		}
		if got := d.metric("runnel_storage_partitions_failed"); got != "0" {
			d.t.Errorf("%s partitions have failed", got)
		}
		if _, err := d.append(d.t.Context(), "broken", "more"); err != nil {
			d.t.Error(err)
		}
		d.read("broken")
		d.restart(func() {})
	}
}

// accept has the loss accepted at one start, and checks that the partition is whole again
// then and at the next, with what was left of it.
func (d *damagedCluster) accept(left []int64) {
	d.t.Helper()
	d.restart(func() { d.config.Storage.AcceptLosses = map[string][]int32{"broken": {0}} })
	for range 2 {
		if err := d.failure(); err != nil {
			d.t.Fatal(err)
		}
		latest, err := d.client.Admin().ListOffsets(d.t.Context(), runnel.At("broken", 0, runnel.Latest()))
		if err != nil || latest[0].Err != nil {
			d.t.Fatal(err, latest)
		}
		if offset, err := d.append(d.t.Context(), "broken", valueOf(int(latest[0].Offset))); err != nil || offset <= left[len(left)-1] {
			d.t.Errorf("appended at %d, %v", offset, err)
		}
		if got := d.read("broken"); len(got) <= len(left) || !slices.Equal(got[:len(left)], left) {
			d.t.Errorf("the offsets %v can be read, before %v", got, left)
		}
		if got := d.metric("runnel_storage_partitions_failed"); got != "0" {
			d.t.Errorf("%s partitions have failed", got)
		}
		d.restart(func() { d.config.Storage.AcceptLosses = nil })
	}
}

// TestDamageAtRest damages volumes while the cluster is down.
func TestDamageAtRest(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		t.Run(fmt.Sprintf("sealed=%t", sealed), func(t *testing.T) {
			d := newDamagedCluster(t)
			if got := d.health("runnel.storage.v1.partitions"); got != "SERVING" {
				t.Errorf("the health of the partitions is %s before", got)
			}
			d.restart(func() {
				volumes := d.volumes()
				damaged := volumes[1]
				if !sealed {
					// The very last one may be a standby, with nothing in it.
					i := len(volumes) - 1
					for ; i > 0 && !d.holdsRecords(volumes[i]); i-- {
					}
					damaged = volumes[i]
				}
				d.flip(damaged, "*.sst")
			})
			left := d.wantFailed()
			if len(left) == 0 || left[0] != 0 {
				t.Errorf("of the records %v are left", left)
			}
			d.restart(func() {})
			if again := d.wantFailed(); !slices.Equal(again, left) {
				t.Errorf("after another start %v are left, before %v", again, left)
			}
			if sealed {
				d.heal()
			} else if err := d.failure(); !strings.Contains(err.Error(), "create it anew") {
				// What was lost may have been more than anybody knows.
				t.Errorf("the error is %v", err)
			} else {
				d.accept(left)
			}
		})
	}
}

// TestDamageMetByConsumer flips a byte in a volume that is in use.
func TestDamageMetByConsumer(t *testing.T) {
	d := newDamagedCluster(t)
	d.flip(d.volumes()[1], "*.vlog")
	left := d.wantFailed()
	if len(left) == 0 || left[0] != 0 || left[len(left)-1] != int64(d.records-1) {
		t.Errorf("of the records %v are left", left)
	}
	d.heal()
}
