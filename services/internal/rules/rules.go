// Package rules holds the decisions that the safety of a log rests on: placement
// and elections, ISR and ELR, high watermark, epochs and truncation, the
// sequences of idempotent producers, and the legal settings of a topic.
//
// All of it is pure. Facts come in as arguments, time among them, and the result
// is a value: there is no I/O, clock, goroutine, context or logger. The services
// call it with what they know, the simulation with what it invents.
package rules
