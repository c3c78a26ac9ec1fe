package sim

import "time"

// process is something that can be cut off, paused and killed.
type process struct {
	name  string
	index int
	up    bool
	// paused holds back all that happens to the process in held.
	paused bool
	held   []func()
	// life numbers the lives of the process: what was meant for an earlier one is
	// lost.
	life int
}

// register makes a process known to the network.
func (w *world) register(p *process, name string) {
	p.name, p.index = name, len(w.processes)
	w.processes = append(w.processes, p)
}

// begin starts a life.
func (p *process) begin() {
	p.life++
	p.up, p.paused, p.held = true, false, nil
}

// end ends it, with all that waits.
func (p *process) end() {
	p.life++
	p.up, p.paused, p.held = false, false, nil
}

// inLife makes something happen to a process in the life that it has now.
func (p *process) inLife(run func()) func() {
	life := p.life
	var deliver func()
	deliver = func() {
		switch {
		case !p.up || p.life != life:
		case p.paused:
			p.held = append(p.held, deliver)
		default:
			run()
		}
	}
	return deliver
}

// after sets a timer of a process.
func (w *world) after(p *process, delay time.Duration, run func()) {
	w.queue.add(w.now+delay, p.inLife(run))
}

// every runs something of a process again and again in its present life.
func (w *world) every(p *process, low, high time.Duration, run func()) {
	w.after(p, w.between(low, high), func() {
		run()
		w.every(p, low, high, run)
	})
}

// resume lets all that was held happen now, in its order.
func (w *world) resume(p *process) {
	if !p.paused {
		return
	}
	held := p.held
	p.paused, p.held = false, nil
	for _, deliver := range held {
		w.queue.add(w.now, deliver)
	}
}

// send sends a message that the network may drop, delay and duplicate.
func (w *world) send(from, to *process, deliver func()) {
	w.sendCopies(from, to, func(bool) { deliver() })
}

// sendCopies sends a message that knows of each of its copies that it is one.
func (w *world) sendCopies(from, to *process, message func(copied bool)) {
	w.sendOnce(from, to, func() { message(false) })
	deliver := func() { message(true) }
	if w.calm || !w.chance(w.settings.duplicate) {
		return
	}
	if w.chance(300) {
		// The copy comes when everybody has gone on long ago.
		w.queue.add(w.now+w.between(0, lateWithin), w.receiver(to, deliver))
		return
	}
	w.sendOnce(from, to, deliver)
}

// lateWithin bounds how late a copy of a message may come.
const lateWithin = 10 * time.Second

// sendOnce sends a message that arrives once at most. A message that is sent while
// a link is cut is lost; what is under way arrives, and what is sent while it is
// stalled comes later.
func (w *world) sendOnce(from, to *process, deliver func()) {
	if w.cut[from.index][to.index] || !w.calm && w.chance(w.settings.drop) {
		return
	}
	at := w.now
	if !w.calm {
		at = max(at, w.stalled[from.index][to.index])
	}
	w.queue.add(at+w.latency(), w.receiver(to, deliver))
}

// stall holds back what one process sends to another: all of it comes later, in some
// order.
func (w *world) stall(from, to *process, length time.Duration) {
	w.note(-1, from.name, "stalls to", int64(to.index), int64(length))
	w.stalled[from.index][to.index] = w.now + length
}

// receiver is what a message does on its arrival: it finds the process that lives
// then, if there is one.
func (w *world) receiver(to *process, deliver func()) func() {
	return func() {
		if to.up {
			to.inLife(deliver)()
		}
	}
}

// latency is short most of the time and long now and then, which reorders.
func (w *world) latency() time.Duration {
	if w.calm || !w.chance(w.settings.slow) {
		return w.between(100*time.Microsecond, 3*time.Millisecond)
	}
	if w.chance(20) {
		return w.between(0, 20*w.settings.slowest)
	}
	return w.between(0, w.settings.slowest)
}
