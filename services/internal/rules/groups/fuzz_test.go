package groups

import (
	"fmt"
	"testing"
	"time"
)

// FuzzShard has the bytes drive a shard: requests of any kind, outcomes of I/O, time. It
// must not panic, nor have two I/Os under way, nor answer anybody twice, nor come to no
// rest.
func FuzzShard(f *testing.F) {
	f.Add([]byte{10, 0, 10, 0, 10, 0})
	f.Add([]byte{10, 0, 10, 0, 0, 1, 10, 0, 0, 2, 10, 0, 2, 1, 10, 0, 3, 1, 10, 1})
	f.Add([]byte{10, 0, 10, 0, 4, 0, 10, 0, 13, 0, 8, 0, 10, 2, 10, 0, 10, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		config := testConfig
		config.MembersPerGroup, config.Groups, config.OffsetsPerGroup, config.Queue, config.RoundBytes = 2, 2, 3, 4, 200
		log, topics := &fakeLog{}, (&fakeTopics{version: 1}).with(Topic{ID: topicID(1), Name: "a", Partitions: 3})
		s := NewShard(config, 1)
		s.SetTopics(topics)
		s.Begin(1)
		now := time.Unix(1000, 0)
		var io Effects
		ticket, epoch := Ticket(0), CoordinatorEpoch(1)
		open := map[Ticket]bool{}
		submit := func(r Request) {
			ticket++
			_, silent := r.(*Detach)
			open[ticket] = !silent
			s.Submit(ticket, r, now)
		}
		for len(program) > 1 {
			what, arg := program[0], program[1]
			program = program[2:]
			group := GroupID(fmt.Sprint(arg & 1))
			member := MemberID(fmt.Sprint(arg >> 1 & 3))
			memberEpoch := Epoch(arg >> 3 & 7)
			switch what % 16 {
			case 0:
				submit(&Join{
					Group: group, Member: member, Epoch: memberEpoch, Instance: []string{"", "i"}[arg>>6&1],
					Subscription:   Subscription{Topics: []string{"a", "z", "a"}[:arg>>3&3], Pattern: []string{"", "b|("}[arg>>7]},
					SessionTimeout: time.Duration(arg>>2) * time.Second, RebalanceTimeout: time.Second,
				})
			case 1:
				submit(&Heartbeat{Group: group, Member: member, Epoch: memberEpoch})
			case 2:
				submit(&Leave{Group: group, Member: member, Keep: arg&64 != 0})
			case 3:
				if arg&128 != 0 {
					member = ""
				}
				submit(&Commit{Group: group, Member: member, Epoch: memberEpoch, Sequence: CommitSequence(arg >> 6), Offsets: []CommitOffset{
					{Partition: partition(1, int32(arg&7)-1), Offset: int64(arg) - 3, LeaderEpoch: -1},
					{Partition: partition(arg&3, 0)},
				}})
			case 4:
				submit([]Request{&List{}, &Describe{Group: group}, &DeleteGroup{Group: group}, &Fetch{Group: group}}[arg>>1&3])
			case 5:
				submit(&DeleteOffsets{Group: group, Partitions: []Partition{partition(1, 0), partition(1, 1)}})
			case 6:
				submit(&Detach{Group: group, Member: member, Stream: Ticket(arg >> 3)})
			case 7:
				topics = topics.with(Topic{ID: topicID(arg & 3), Name: string('a' + rune(arg&3)), Partitions: int32(arg >> 4)})
				s.SetTopics(topics)
			case 8:
				topics = topics.without("a")
				s.SetTopics(topics)
			case 9:
				now = now.Add(time.Duration(arg) * time.Second)
			case 10, 11, 12, 13:
				outcome := Outcome(arg & 3)
				switch e := io; {
				case e.Append != nil:
					if outcome == Done || outcome == Doubtful && arg&4 != 0 {
						if log.append(e.Append) == Fenced {
							outcome = Fenced
						}
					}
					io = Effects{}
					s.Appended(e.Append.Ticket, outcome, log.end(), now)
				case e.Check != nil:
					io = Effects{}
					s.Checked(e.Check.Ticket, outcome, now)
				case e.Load != nil:
					io = Effects{}
					s.Load(e.Load.Ticket, log.records)
					s.Loaded(e.Load.Ticket, outcome, now)
				default:
					s.Appended(Ticket(arg), outcome, int64(arg), now)
					s.Loaded(Ticket(arg), outcome, now)
				}
			case 14:
				epoch++
				s.Begin(epoch)
			case 15:
				if arg&7 == 0 {
					s.End(nil)
				} else {
					now = now.Add(time.Duration(arg) * time.Hour)
				}
			}
			e := s.Step(now)
			if e.Append != nil || e.Check != nil || e.Load != nil {
				if io.Append != nil || io.Check != nil || io.Load != nil {
					t.Fatal("two I/Os at once")
				}
				io = e
			}
			for _, reply := range e.Replies {
				if !open[reply.Ticket] {
					t.Fatalf("request %d is answered twice", reply.Ticket)
				}
				open[reply.Ticket] = false
			}
			for _, a := range e.Assignments {
				open[a.Stream] = false
			}
			if !e.Wake.IsZero() && !e.Wake.After(now) {
				t.Fatalf("asks to be woken at %v, and it is %v", e.Wake, now)
			}
		}
	})
}
