package groups

import (
	"slices"
	"testing"
)

// TestMemoryYieldsTheNewestRecords also says what it does not yield: records that others
// have replaced or buried, fences, and anything of a shard that does not serve.
func TestMemoryYieldsTheNewestRecords(t *testing.T) {
	r := newRig(t, testConfig)
	one, _ := r.join(joinOf("one", "a"))
	two, _ := r.join(joinOf("two", "a"))
	r.follow(one)
	r.follow(two)
	a := r.newest(one)
	for offset := range int64(2) {
		if why := r.commit("one", a.Epoch, a.Partitions[0].Partition, offset); why != nil {
			t.Fatal(why)
		}
	}
	r.ok(&Leave{Group: "g", Member: "two"})
	var group *GroupRecord
	var member *MemberRecord
	var offset *OffsetRecord
	for _, record := range r.log.records {
		switch x := record.(type) {
		case *GroupRecord:
			group = x
		case *MemberRecord:
			if x.Member == "one" {
				member = x
			}
		case *OffsetRecord:
			offset = x
		}
	}
	if got, want := slices.Collect(r.shard.Memory), []Record{group, member, offset}; !slices.Equal(got, want) {
		t.Errorf("memory is %v, the newest records are %v", got, want)
	}
	r.shard.End(unavailable("it has ended"))
	if got := slices.Collect(r.shard.Memory); len(got) > 0 {
		t.Errorf("a shard that does not serve remembers %v", got)
	}
}
