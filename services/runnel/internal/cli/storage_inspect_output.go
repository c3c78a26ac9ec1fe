package cli

import (
	"fmt"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/storage"
)

// inspectionObject is a data directory as -o json prints it.
type inspectionObject struct {
	Directory   string                     `json:"directory"`
	NodeID      *int32                     `json:"node_id"`
	DirectoryID string                     `json:"directory_id"`
	ClusterID   *string                    `json:"cluster_id"`
	Clean       bool                       `json:"clean"`
	Verified    bool                       `json:"verified"`
	Volumes     []inspectedVolumeObject    `json:"volumes"`
	Partitions  []inspectedPartitionObject `json:"partitions"`
	Damage      []damageObject             `json:"damage"`
}

type inspectedVolumeObject struct {
	Volume        uint64     `json:"volume"`
	Name          string     `json:"name"`
	Set           string     `json:"set"`
	State         string     `json:"state"`
	Copies        bool       `json:"copies"`
	FormatVersion int        `json:"format_version"`
	Created       *time.Time `json:"created"`
	Sealed        *time.Time `json:"sealed"`
	Reason        *string    `json:"reason"`
	DiskBytes     int64      `json:"disk_bytes"`
	BatchBytes    int64      `json:"batch_bytes"`
	LiveBytes     int64      `json:"live_bytes"`
	Spans         int        `json:"spans"`
	Partitions    int        `json:"partitions"`
	Checksummed   bool       `json:"checksummed"`
}

type inspectedPartitionObject struct {
	TopicID       string                `json:"topic_id"`
	Partition     int32                 `json:"partition"`
	LogStart      int64                 `json:"log_start"`
	LogEnd        int64                 `json:"log_end"`
	HighWatermark int64                 `json:"high_watermark"`
	LeaderEpoch   *int32                `json:"leader_epoch"`
	CompactedTo   int64                 `json:"compacted_to"`
	Producers     int                   `json:"producers"`
	State         string                `json:"state"`
	DeletedAt     *time.Time            `json:"deleted_at"`
	Failed        *string               `json:"failed"`
	LogEndUnknown bool                  `json:"log_end_unknown"`
	StateVolume   uint64                `json:"state_volume"`
	Spans         []inspectedSpanObject `json:"spans"`
}

type inspectedSpanObject struct {
	Volume uint64 `json:"volume"`
	First  int64  `json:"first"`
	End    int64  `json:"end"`
	Bytes  int64  `json:"bytes"`
	// NewestTimestamp is an upper bound.
	NewestTimestamp *time.Time `json:"newest_timestamp"`
	Sparse          bool       `json:"sparse"`
}

type damageObject struct {
	Volume    *uint64 `json:"volume"`
	File      *string `json:"file"`
	TopicID   *string `json:"topic_id"`
	Partition *int32  `json:"partition"`
	Offset    *int64  `json:"offset"`
	Reason    string  `json:"reason"`
}

func newInspectionObject(in *storage.Inspection) inspectionObject {
	o := inspectionObject{
		Directory:   in.Dir,
		NodeID:      optional(int32(in.Identity.NodeID)),
		DirectoryID: cluster.TopicID(in.Identity.DirectoryID).String(),
		Clean:       in.Clean,
		Verified:    in.Verified,
		Volumes:     make([]inspectedVolumeObject, len(in.Volumes)),
		Partitions:  make([]inspectedPartitionObject, len(in.Partitions)),
		Damage:      newDamageObjects(in.Damage),
	}
	if in.Identity.Known() {
		o.ClusterID = optional(cluster.TopicID(in.Identity.ClusterID).String())
	}
	for i, v := range in.Volumes {
		state, reason := volumeState(v)
		o.Volumes[i] = inspectedVolumeObject{
			Volume: v.Number, Name: v.Name, Set: string(v.Set), State: state, Copies: v.Copies, FormatVersion: v.FormatVersion,
			Created: optionalTime(v.Created), Sealed: optionalTime(v.Sealed), Reason: optional(reason),
			DiskBytes: v.DiskBytes, BatchBytes: v.Bytes, LiveBytes: v.LiveBytes, Spans: v.Spans, Partitions: v.Partitions, Checksummed: v.Checksummed,
		}
	}
	for i, q := range in.Partitions {
		state, _ := inspectedState(q)
		out := inspectedPartitionObject{
			TopicID: q.ID.Topic.String(), Partition: q.ID.Index, LogStart: q.LogStart, LogEnd: q.LogEnd, HighWatermark: q.HighWatermark,
			CompactedTo: q.CompactedTo, Producers: q.Producers, State: state, DeletedAt: optionalTime(q.DeletedAt), Failed: optional(q.Failed),
			LogEndUnknown: q.LogEndUnknown, StateVolume: q.StateVolume, Spans: make([]inspectedSpanObject, len(q.Spans)),
		}
		if n := len(q.Epochs); n > 0 {
			epoch := int32(q.Epochs[n-1].Epoch)
			out.LeaderEpoch = &epoch
		}
		for k, s := range q.Spans {
			out.Spans[k] = inspectedSpanObject{
				Volume: s.Volume, First: s.First, End: s.End, Bytes: s.Bytes, NewestTimestamp: optionalTime(timestamp(s.MaxTimestamp)), Sparse: s.Sparse,
			}
		}
		o.Partitions[i] = out
	}
	return o
}

func newDamageObjects(damage []storage.Damage) []damageObject {
	out := make([]damageObject, len(damage))
	for i, d := range damage {
		out[i] = damageObject{Volume: optional(d.Volume), File: optional(d.File), Reason: d.Reason}
		if d.Partition != nil {
			id, index, offset := d.Partition.Topic.String(), d.Partition.Index, d.Offset
			out[i].TopicID, out[i].Partition, out[i].Offset = &id, &index, &offset
		}
	}
	return out
}

func inspectionTables(in *storage.Inspection, partitions bool) []*table {
	header := newTable()
	header.row("Directory:", in.Dir)
	switch {
	case in.Identity.Known():
		header.row("Node:", fmt.Sprintf("%d of cluster %s", in.Identity.NodeID, cluster.TopicID(in.Identity.ClusterID)))
	default:
		header.row("Node:", "none: it has not registered yet")
	}
	header.row("Last stop:", lastStop(in.Clean))
	var disk, live int64
	for _, v := range in.Volumes {
		disk += v.DiskBytes
		live += v.LiveBytes
	}
	header.row("Partitions:", partitionsText(in))
	header.row("On disk:", fmt.Sprintf("%s in %s", byteSize(disk), plural(int64(len(in.Volumes)), "volume")))
	header.row("Live:", byteSize(live))
	header.row("Damage:", damageText(in))

	volumes := newTable("VOLUME", "SET", "STATE", "DISK", "LIVE", "SPANS", "PARTITIONS", "CREATED")
	for _, v := range in.Volumes {
		state, _ := volumeState(v)
		if v.Copies {
			state += ", copies"
		}
		volumes.row(v.Number, orDash(string(v.Set)), state, byteSize(v.DiskBytes), byteSize(v.LiveBytes), v.Spans, v.Partitions, timeText(v.Created))
	}
	tables := []*table{header, volumes}
	if partitions {
		tables = append(tables, partitionTable(in), spanTable(in))
	}
	if len(in.Damage) > 0 {
		tables = append(tables, damageTable(in.Damage))
	}
	return tables
}

// partitionsText counts the partitions that are known: those whose every record lies
// in volumes that cannot be read are not.
func partitionsText(in *storage.Inspection) string {
	text := fmt.Sprint(len(in.Partitions))
	for _, v := range in.Volumes {
		if v.Unreadable != "" {
			return text + " known, and perhaps others in the volumes that are unreadable"
		}
	}
	return text
}

func lastStop(clean bool) string {
	if clean {
		return "in good order"
	}
	return "not in good order, or the node runs for the first time"
}

func damageText(in *storage.Inspection) string {
	switch n := len(in.Damage); {
	case n > 0:
		return plural(int64(n), "place") + ", see below"
	case in.Verified:
		return "none was found; everything was read"
	}
	return "none was found, but records were not read: add --verify"
}

func partitionTable(in *storage.Inspection) *table {
	t := newTable("TOPIC ID", "PARTITION", "LOG START", "LOG END", "HIGH WATERMARK", "SPANS", "LIVE", "PRODUCERS", "STATE")
	for _, q := range in.Partitions {
		var live int64
		for _, s := range q.Spans {
			live += s.Bytes
		}
		state, reason := inspectedState(q)
		if reason != "" {
			state += ": " + reason
		}
		t.row(q.ID.Topic, q.ID.Index, q.LogStart, q.LogEnd, q.HighWatermark, len(q.Spans), byteSize(live), q.Producers, state)
	}
	return t
}

func spanTable(in *storage.Inspection) *table {
	t := newTable("TOPIC ID", "PARTITION", "VOLUME", "FIRST", "END", "BYTES", "NEWEST", "GAPS")
	for _, q := range in.Partitions {
		for _, s := range q.Spans {
			gaps := "no"
			if s.Sparse {
				gaps = "yes"
			}
			t.row(q.ID.Topic, q.ID.Index, s.Volume, s.First, s.End, byteSize(s.Bytes), timeText(timestamp(s.MaxTimestamp)), gaps)
		}
	}
	return t
}

func damageTable(damage []storage.Damage) *table {
	t := newTable("DAMAGE")
	for _, d := range damage {
		t.row(d.String())
	}
	return t
}

// volumeState says in a word what a volume is, and why if something is wrong.
func volumeState(v storage.InspectedVolume) (state, reason string) {
	switch {
	case v.Condemned != "":
		return "condemned", v.Condemned
	case v.Unreadable != "":
		return "unreadable", v.Unreadable
	case v.Sealed.IsZero():
		return "active", ""
	}
	return "sealed", ""
}

// inspectedState says in a word what a partition is, and why if something is
// wrong.
func inspectedState(q storage.InspectedPartition) (state, reason string) {
	switch {
	case q.Deleted:
		return "deleted", ""
	case q.Failed != "":
		return "failed", q.Failed
	}
	return "ok", ""
}

// byteSize is a number of bytes for a person.
func byteSize(n int64) string {
	if n < 1<<10 {
		return plural(n, "byte")
	}
	size, unit := float64(n)/(1<<10), 0
	units := [...]string{"KiB", "MiB", "GiB", "TiB"}
	for size >= 1<<10 && unit < len(units)-1 {
		size, unit = size/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %s", size, units[unit])
}

// timestamp reads milliseconds since the Unix epoch; 0 stands for none.
func timestamp(ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// optional returns nil for a zero value, which stands for none.
func optional[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	utc := t.UTC()
	return &utc
}
