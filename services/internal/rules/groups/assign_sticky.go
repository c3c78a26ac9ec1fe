package groups

import (
	"cmp"
	"math"
	"slices"
)

// sticky shares out by numbers: how many partitions of each kind every member has.
// Which ones they are is settled at the end, when each member keeps of those that it
// had what its numbers allow.
//
// The numbers start from what the members had, and what nobody had is given to the
// least loaded who may have it. Then partitions go, one by one, from the most loaded
// member to the least loaded who may have one of its, for as long as the two differ by
// two or more. With one subscription the number of such moves is the least possible: as
// long as both are needed, each move ends at a member that lacks partitions and starts
// at one that has too many.
//
// With several subscriptions a later move can make an earlier one pointless, so what
// has gone from one member to another goes back if the balance is none the worse for it.
//
// It ends, because every step lowers the sum of the squared loads, or leaves it and
// lowers the number of moved partitions.
type sticky struct {
	*sharing
	// had and has are by member and kind, free, what nobody had, by kind.
	had, has [][]int32
	free     []int
	load     []int
	// byLoad ranks the members of each class, the least loaded first; least is how
	// loaded that one is.
	byLoad []ranking
	least  []int
	// floor is what least is not below in any class of a kind; next is where among its
	// classes to look for one at the floor.
	floor []int
	next  []int
}

func (s *sharing) assignSticky() {
	st := &sticky{
		sharing: s,
		had:     make([][]int32, len(s.members)), has: make([][]int32, len(s.members)), load: make([]int, len(s.members)),
		free:  make([]int, len(s.kinds)),
		floor: make([]int, len(s.kinds)), next: make([]int, len(s.kinds)),
	}
	st.keep()
	st.rank()
	st.place()
	for {
		st.balance()
		if !st.giveBack() {
			break
		}
	}
	st.settle()
}

// keep takes over what members had and may have.
func (s *sticky) keep() {
	for m := range s.members {
		s.had[m] = make([]int32, len(s.kinds))
		kinds := s.classes[s.classOf[m]].kinds
		for _, p := range s.members[m].Owned {
			t, ok := s.places[p.Topic]
			if !ok || p.Index < 0 || p.Index >= s.topics[t].Partitions {
				continue
			}
			k := s.kindOf[t]
			if _, subscribed := slices.BinarySearch(kinds, k); !subscribed || s.of(t)[p.Index] != nobody {
				continue
			}
			s.of(t)[p.Index] = int32(m)
			s.had[m][k]++
			s.load[m]++
		}
		s.has[m] = slices.Clone(s.had[m])
	}
	for k := range s.kinds {
		for _, t := range s.kinds[k].topics {
			for _, owner := range s.of(t) {
				if owner == nobody {
					s.free[k]++
				}
			}
		}
	}
}

func (s *sticky) rank() {
	at := make([]int32, len(s.load))
	lessLoaded := func(a, b int32) bool {
		return s.load[a] < s.load[b] || s.load[a] == s.load[b] && a < b
	}
	s.byLoad = make([]ranking, len(s.classes))
	s.least = make([]int, len(s.byLoad))
	for c, class := range s.classes {
		// A member is in one class, so the classes can share at.
		s.byLoad[c] = ranking{before: lessLoaded, at: at}
		for _, m := range class.members {
			s.byLoad[c].push(m)
		}
		s.least[c] = s.load[s.byLoad[c].first()]
	}
}

// receiver returns the least loaded of those who may have partitions of a kind.
func (s *sticky) receiver(k int32) int32 {
	classes := s.kinds[k].classes
	for {
		// All classes are looked at for each step of the floor, not for each receiver.
		least := math.MaxInt
		for range classes {
			c := classes[s.next[k]]
			if s.least[c] == s.floor[k] {
				return s.byLoad[c].first()
			}
			least = min(least, s.least[c])
			if s.next[k]++; s.next[k] == len(classes) {
				s.next[k] = 0
			}
		}
		s.floor[k] = least
	}
}

// give changes how many partitions of a kind a member has.
func (s *sticky) give(m, k int32, n int) {
	s.has[m][k] += int32(n)
	s.load[m] += n
	c := s.classOf[m]
	s.byLoad[c].fix(m)
	s.least[c] = s.load[s.byLoad[c].first()]
	if s.least[c] == s.load[m] && n < 0 {
		for _, k := range s.classes[c].kinds {
			s.floor[k] = min(s.floor[k], s.least[c])
		}
	}
}

func (s *sticky) move(from, to, k int32) {
	s.give(from, k, -1)
	s.give(to, k, 1)
}

// place gives out what nobody had, first that for which there is the least choice.
func (s *sticky) place() {
	order := make([]int32, len(s.kinds))
	for k := range order {
		order[k] = int32(k)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(s.kinds[a].members, s.kinds[b].members) })
	for _, k := range order {
		for range s.free[k] {
			s.give(s.receiver(k), k, 1)
		}
	}
}

// balance moves partitions until no single move could even the loads out.
func (s *sticky) balance() {
	moreLoaded := func(a, b int32) bool {
		return s.load[a] > s.load[b] || s.load[a] == s.load[b] && a < b
	}
	donors := ranking{before: moreLoaded, at: make([]int32, len(s.load))}
	for moved := true; moved; {
		moved = false
		for m := range s.load {
			donors.push(int32(m))
		}
		for !donors.empty() {
			donor := donors.first()
			receiver, k := s.relief(donor)
			if receiver == nobody {
				// A later move may change that; then there is another round.
				donors.dropFirst()
				continue
			}
			s.move(donor, receiver, k)
			donors.fix(donor)
			donors.fix(receiver)
			moved = true
		}
	}
}

// relief returns who is to take a partition of a member and of which kind: rather one
// that the member did not have before, then for the least loaded.
func (s *sticky) relief(donor int32) (receiver, kind int32) {
	receiver = nobody
	kept := false
	for _, k := range s.classes[s.classOf[donor]].kinds {
		if s.has[donor][k] == 0 {
			continue
		}
		r, own := s.receiver(k), s.has[donor][k] <= s.had[donor][k]
		if s.load[r]+2 > s.load[donor] {
			continue
		}
		if receiver == nobody || kept && !own || kept == own && s.load[r] < s.load[receiver] {
			receiver, kind, kept = r, k, own
		}
	}
	return receiver, kind
}

// giveBack undoes moves that leave the balance as it is, and reports whether there were
// any.
func (s *sticky) giveBack() bool {
	undone := false
	gained := make(map[int][]int32)
	for k := range int32(len(s.kinds)) {
		clear(gained)
		lost := false
		for m := range s.load {
			if s.has[m][k] > s.had[m][k] {
				gained[s.load[m]] = append(gained[s.load[m]], int32(m))
			}
			lost = lost || s.has[m][k] < s.had[m][k]
		}
		for m := 0; lost && m < len(s.load); m++ {
			for s.has[m][k] < s.had[m][k] {
				// The two swap their loads.
				holders := gained[s.load[m]+1]
				if len(holders) == 0 {
					break
				}
				holder := holders[len(holders)-1]
				gained[s.load[m]+1] = holders[:len(holders)-1]
				s.move(holder, int32(m), k)
				if s.has[holder][k] > s.had[holder][k] {
					gained[s.load[holder]] = append(gained[s.load[holder]], holder)
				}
				undone = true
			}
		}
	}
	return undone
}

// settle turns numbers into partitions.
func (s *sticky) settle() {
	var left []*int32
	for k := range s.kinds {
		left = left[:0]
		for _, t := range s.kinds[k].topics {
			partitions := s.of(t)
			for i, owner := range partitions {
				if owner != nobody && s.has[owner][k] > 0 {
					s.has[owner][k]--
				} else {
					left = append(left, &partitions[i])
				}
			}
		}
		if len(left) == 0 {
			continue
		}
		// In turn, so that the partitions of a busy topic go to several members.
		takers := s.subscribers(int32(k))
		for i := 0; i < len(left); {
			takers = slices.DeleteFunc(takers, func(m int32) bool { return s.has[m][k] == 0 })
			for _, m := range takers {
				*left[i] = m
				s.has[m][k]--
				i++
			}
		}
	}
}
