package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/storage"
)

// inspected is a data directory with something of everything.
func inspected() *storage.Inspection {
	topic := cluster.TopicID{1}
	created := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	in := &storage.Inspection{
		Dir:      "/data/storage",
		Verified: true,
		Volumes: []storage.InspectedVolume{
			{Number: 1, Name: "synced-000001", Set: "synced", Created: created, Sealed: created.Add(time.Hour), DiskBytes: 5 << 20, Bytes: 4 << 20, LiveBytes: 1536, Spans: 1, Partitions: 1, Checksummed: true},
			{Number: 2, Name: "synced-000002.condemned", Set: "synced", Created: created, Condemned: "it was found damaged", DiskBytes: 3 << 30},
			{Number: 3, Name: "synced-000003", Set: "synced", Copies: true, Created: created, DiskBytes: 100, LiveBytes: 10, Spans: 1, Partitions: 1},
			{Number: 4, Name: "replicated-000004", Unreadable: "volume.json is missing"},
		},
		Damage: []storage.Damage{
			{Volume: 4, File: "volumes/replicated-000004/volume.json", Reason: "it is missing"},
		},
	}
	in.Identity.NodeID, in.Identity.ClusterID, in.Identity.DirectoryID = 7, [16]byte{2}, [16]byte{3}
	in.Partitions = make([]storage.InspectedPartition, 3)
	for i := range in.Partitions {
		in.Partitions[i].ID.Topic, in.Partitions[i].ID.Index = topic, int32(i)
	}
	p := &in.Partitions[0]
	p.LogStart, p.LogEnd, p.HighWatermark, p.Producers = 5, 20, 19, 2
	p.Spans = []storage.InspectedSpan{
		{Volume: 1, First: 3, End: 10, MaxTimestamp: created.UnixMilli(), Bytes: 1536},
		{Volume: 3, First: 10, End: 20, Bytes: 10, Sparse: true},
	}
	in.Partitions[1].Failed = "volume 2 is condemned"
	in.Partitions[2].Deleted, in.Partitions[2].DeletedAt = true, created
	in.Damage = append(in.Damage, storage.Damage{Volume: 1, Partition: &in.Partitions[0].ID, Offset: 7, Reason: "the CRC is wrong"})
	return in
}

func TestInspectionTables(t *testing.T) {
	var text strings.Builder
	for _, table := range inspectionTables(inspected(), true) {
		if err := table.writeTo(&text); err != nil {
			t.Fatal(err)
		}
	}
	id := "01000000-0000-0000-0000-000000000000"
	for _, line := range []string{
		`Directory: +/data/storage`, `Node: +7 of cluster 02000000-.*`, `Last stop: +not in good order.*`,
		`Partitions: +3 known, and perhaps others in the volumes that are unreadable`, `On disk: +3\.0 GiB in 4 volumes`, `Live: +1\.5 KiB`, `Damage: +2 places, see below`,
		`VOLUME +SET +STATE +DISK +LIVE +SPANS +PARTITIONS +CREATED`,
		`1 +synced +sealed +5\.0 MiB +1\.5 KiB +1 +1 +2026-11-23T08:00:00Z`,
		`2 +synced +condemned +3\.0 GiB .*`, `3 +synced +active, copies +100 bytes .*`, `4 +- +unreadable .* -`,
		id + ` +0 +5 +20 +19 +2 +1\.5 KiB +2 +ok`, id + ` +1 .* failed: volume 2 is condemned`, id + ` +2 .* deleted`,
		id + ` +0 +1 +3 +10 +1\.5 KiB +2026-11-23T08:00:00Z +no`, id + ` +0 +3 +10 +20 +10 bytes +- +yes`,
		`volume 4: volumes/replicated-000004/volume.json: it is missing`, `volume 1: partition .* at offset 7: the CRC is wrong`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(text.String()) {
			t.Errorf("no line %s in\n%s", line, text.String())
		}
	}
	if brief := inspectionTables(inspected(), false); len(brief) != 3 {
		t.Errorf("without --partitions there are %d tables", len(brief))
	}
}

func TestInspectionObject(t *testing.T) {
	encoded, err := json.Marshal(newInspectionObject(inspected()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"directory":"/data/storage","node_id":7,"directory_id":"03000000-`, `"clean":false,"verified":true`,
		`{"volume":1,"name":"synced-000001","set":"synced","state":"sealed","copies":false,`, `"sealed":"2026-11-23T09:00:00Z","reason":null,"disk_bytes":5242880,"batch_bytes":4194304,"live_bytes":1536,`,
		`"state":"condemned","copies":false,`, `"reason":"it was found damaged"`,
		`"log_start":5,"log_end":20,"high_watermark":19,"leader_epoch":null,`, `"state":"failed","deleted_at":null,"failed":"volume 2 is condemned"`,
		`"spans":[{"volume":1,"first":3,"end":10,"bytes":1536,"newest_timestamp":"2026-11-23T08:00:00Z","sparse":false},{"volume":3,`,
		`"damage":[{"volume":4,"file":"volumes/replicated-000004/volume.json","topic_id":null,"partition":null,"offset":null,"reason":"it is missing"},` +
			`{"volume":1,"file":null,"topic_id":"01000000-0000-0000-0000-000000000000","partition":0,"offset":7,"reason":"the CRC is wrong"}]`,
	} {
		if !strings.Contains(string(encoded), want) {
			t.Errorf("no %s in\n%s", want, encoded)
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	clusterAddress(t)
	empty, none := t.TempDir(), filepath.Join(t.TempDir(), "none")
	file := filepath.Join(empty, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	for _, name := range []string{"node.json", "node.copy.json"} {
		raw, err := os.ReadFile(filepath.Join(shared.dir, "metadata", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(other, name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{"inspect", "verify"} {
		for dir, want := range map[string]string{
			shared.dir: `data directory ` + shared.dir + `/storage is in use by .*; stop that one.*`,
			none:       `there is no data directory ` + none + `; check the path.*`,
			empty:      empty + ` is not the data directory of a storage node: it has neither volumes nor a list of them; give the directory that the node has as --data-dir`,
			// It has an identity.
			other: other + ` is not the data directory of a storage node: .*`,
			file:  `.*` + file + `.*`,
		} {
			got := runWith(t, nil, nil, "storage", command, dir)
			if got.code != exitFailure || got.stdout != "" || !regexp.MustCompile(`^runnel: `+want+`\n$`).MatchString(got.stderr) {
				t.Errorf("%s %s: exit code %d, stdout %q, stderr %s", command, dir, got.code, got.stdout, got.stderr)
			}
		}
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1: "1 byte", 1023: "1023 bytes", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 5 << 40: "5.0 TiB", 1 << 60: "1048576.0 TiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
