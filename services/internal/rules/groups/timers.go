package groups

import "time"

// timer is when a member or a group without members has to be looked at. It is a part of
// the one or the other, and at most once among the timers.
type timer struct {
	at time.Time
	// place is the timer's index among the timers plus 1; 0 says that it is not there.
	place  int
	group  *group
	member *member
}

// timers is a binary heap: what is not due costs nothing.
type timers []*timer

// set puts the timer in, or moves it.
func (t *timers) set(x *timer, at time.Time) {
	x.at = at
	if x.place == 0 {
		*t = append(*t, x)
		x.place = len(*t)
	}
	t.up(x.place - 1)
	t.down(x.place - 1)
}

func (t *timers) remove(x *timer) {
	if x.place == 0 {
		return
	}
	i, last := x.place-1, len(*t)-1
	t.swap(i, last)
	(*t)[last] = nil
	*t = (*t)[:last]
	x.place = 0
	if i < last {
		t.up(i)
		t.down(i)
	}
}

func (t timers) swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].place, t[j].place = i+1, j+1
}

func (t timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !t[i].at.Before(t[parent].at) {
			return
		}
		t.swap(i, parent)
		i = parent
	}
}

func (t timers) down(i int) {
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(t) && t[child].at.Before(t[least].at) {
				least = child
			}
		}
		if least == i {
			return
		}
		t.swap(i, least)
		i = least
	}
}
