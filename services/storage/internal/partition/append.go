package partition

import (
	"fmt"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Append is what a producer asks for, or a coordinator.
type Append struct {
	// Batch is one record batch in Kafka's format v2 as it came from outside. It
	// belongs to the partition from the call on, even if the call fails, and is
	// never changed once the call has returned.
	Batch []byte
	// Acks says when to acknowledge; a coordinator's append is acknowledged by all.
	Acks logv1.Acks
	// Claim is a coordinator's, which has to hold when the batch takes its place; nil for
	// producers. Only coordinators write the cluster's own topics, and nothing else.
	Claim *rules.Claim
	// Deadline ends the wait for the acknowledgement.
	Deadline time.Time
	// LeaderEpoch is the one that the producer believes current, or
	// [rules.NoEpoch].
	LeaderEpoch cluster.LeaderEpoch
	// Charged is how many bytes the caller has acquired from the host's budget for
	// it; the partition gives them back.
	Charged int64
}

// Result is the outcome of an append that was not refused.
type Result struct {
	// BaseOffset is the offset of the first record.
	BaseOffset int64
	// AppendTime is the time that all records were given, in milliseconds since
	// the Unix epoch, or -1.
	AppendTime int64
	// LogStart is the first offset that the partition holds.
	LogStart int64
	// HighWatermark is that of the acknowledgement, with [logv1.Acks_ACKS_ALL].
	HighWatermark int64
	// LeaderEpoch is that of the append; of a duplicate, the present one.
	LeaderEpoch cluster.LeaderEpoch
	// Records is how many the batch has.
	Records int32
	// Duplicate says that the batch had been appended before.
	Duplicate bool
	// Err is a *rpcerr.Error when the acknowledgement failed: the outcome is
	// unknown.
	Err error
}

// Completion learns the outcome of an append. It is called once, with locks of
// the partition held: it must not block, and not call the partition.
type Completion interface {
	Complete(Result)
}

// waiter is an append that waits for its acknowledgement.
type waiter struct {
	// end is the offset after its last record.
	end      int64
	deadline time.Time
	done     Completion
	result   Result
}

func (w waiter) complete() { w.done.Complete(w.result) }

func (w waiter) fail(err error) {
	w.result.Err = err
	w.done.Complete(w.result)
}

// Append appends a batch. It returns an error, a *rpcerr.Error, when the batch
// is refused: nothing was appended, and done is not called. Otherwise done is
// called with the outcome, as Acks says, possibly before Append returns. Appends
// take their places in the order of the calls. Append blocks while the store's
// queue is full.
func (p *Partition) Append(a Append, done Completion) error {
	err := p.append(a, done)
	if err != nil {
		p.host.budget.Release(a.Charged)
	}
	return err
}

func (p *Partition) append(a Append, done Completion) error {
	config := p.topic.Config()
	if a.Claim != nil {
		a.Acks = logv1.Acks_ACKS_ALL
	}
	p.lock()
	err := p.admitLocked(a)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	// Reading the whole batch needs no lock. What was admitted is asked again
	// under the lock that keeps it so.
	header, err := p.validate(a.Batch, config, time.Now())
	if err != nil {
		return err
	}
	if a.Claim != nil && header.Idempotent() {
		// A duplicate is acknowledged without an append, and would raise no epoch.
		return rpcerr.New(errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
			"batch for %s has producer id %d; coordinators append without one, the offset that they expect tells repetitions", p.name(), header.ProducerID)
	}
	p.appending.Lock()
	defer p.appending.Unlock()

	p.lock()
	if err := p.admitLocked(a); err != nil {
		p.mu.Unlock()
		return err
	}
	epoch, base := p.replica.Epoch(), p.replica.Next()
	p.mu.Unlock()
	// Neither can change from here on: that needs appending.

	w := waiter{
		deadline: a.Deadline,
		done:     done,
		result:   Result{AppendTime: -1, LeaderEpoch: epoch, Records: header.RecordCount},
	}
	sequences := rules.ProducerAppend{
		ID: header.ProducerID, Epoch: header.ProducerEpoch, BaseSequence: header.BaseSequence, LastSequence: header.LastSequence(),
	}
	if header.Idempotent() {
		original, duplicate, err := p.checkSequence(sequences)
		if err != nil {
			return err
		}
		if duplicate {
			w.end = original.BaseOffset + int64(header.RecordCount)
			w.result.BaseOffset, w.result.AppendTime, w.result.Duplicate = original.BaseOffset, original.AppendTime, true
			p.lock()
			p.awaitLocked(w, a.Acks)
			p.mu.Unlock()
			p.host.budget.Release(a.Charged)
			p.host.metrics.duplicates.Inc()
			return nil
		}
	}

	// Duplicates are answered on a full disk too: they are there.
	if err := p.log.Admit(len(a.Batch)); err != nil {
		return p.noRoom(err)
	}
	recordbatch.Assign(a.Batch, base, int32(epoch))
	if config.TimestampType == rules.TimestampLogAppendTime {
		p.appendTime = max(p.appendTime, time.Now().UnixMilli())
		recordbatch.SetAppendTime(a.Batch, p.appendTime)
		header.MaxTimestamp = p.appendTime
		w.result.AppendTime = p.appendTime
	}
	w.end, w.result.BaseOffset = base+int64(header.RecordCount), base
	push := store.Append{
		Set:     p.topic.set(),
		Batches: []store.Batch{{Bytes: a.Batch, BaseOffset: base, LastOffset: w.end - 1, MaxTimestamp: header.MaxTimestamp}},
	}
	push.SpanBytes, push.SpanAge = appendLimits(config)
	if header.Idempotent() {
		push.Producers, push.RemovedProducers = p.recordSequence(sequences, base, w.result.AppendTime, header.MaxTimestamp)
	}

	p.lock()
	if a.Claim != nil {
		p.replica.QueueFenced(w.end, a.Claim.Epoch)
	} else {
		p.replica.Queue(w.end)
	}
	push.State = p.stateLocked()
	p.host.tails.add(&p.tail, a.Batch, base, w.end-1)
	p.commits.push(commit{logEnd: w.end, logStart: push.State.LogStart, bytes: a.Charged})
	p.awaitLocked(w, a.Acks)
	p.mu.Unlock()
	p.host.metrics.appended(len(a.Batch), int(header.RecordCount))
	p.log.Append(push, p.committed)
	return nil
}

// admitLocked says whether an append may happen at all.
func (p *Partition) admitLocked(a Append) error {
	if err := p.servesLocked(a.LeaderEpoch); err != nil {
		return err
	}
	if err := p.log.Failed(); err != nil {
		return p.lost(err)
	}
	if err := p.claimedLocked(a.Claim); err != nil {
		return err
	}
	if a.Acks == logv1.Acks_ACKS_NONE || a.Acks == logv1.Acks_ACKS_LEADER {
		return nil
	}
	if have, need := p.replica.InSync(); have < need {
		return rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS,
			"%s has only %d in sync and acks=all needs min.insync.replicas=%d; nothing was appended; bring replicas back and try again", p.name(), have, need)
	}
	return nil
}

// awaitLocked completes an append at once if its acknowledgement need not wait,
// and queues it otherwise.
func (p *Partition) awaitLocked(w waiter, acks logv1.Acks) {
	w.result.LogStart = p.replica.StartWritten()
	queue, reached := &p.forAll, p.replica.HighWatermark()
	switch acks {
	case logv1.Acks_ACKS_NONE:
		w.complete()
		return
	case logv1.Acks_ACKS_LEADER:
		queue, reached = &p.forLeader, p.replica.LogEnd()
	}
	if w.end <= reached {
		w.result.HighWatermark = p.replica.HighWatermark()
		w.complete()
		return
	}
	// A duplicate whose original is still on its way waits behind appends that
	// came after the original; both complete in the same moments.
	queue.push(w)
	if !p.sweeping {
		p.sweeping = true
		p.host.overdue.add(p)
	}
}

// validate checks a batch as it came from a producer.
func (p *Partition) validate(batch []byte, config *rules.TopicConfig, now time.Time) (recordbatch.Header, error) {
	if len(batch) > config.MaxMessageBytes {
		return recordbatch.Header{}, rpcerr.New(errorsv1.Reason_REASON_RECORD_TOO_LARGE,
			"batch of %d bytes for %s is larger than max.message.bytes=%d; send smaller batches or raise the topic's setting", len(batch), p.name(), config.MaxMessageBytes)
	}
	header, err := recordbatch.VerifyProduced(batch)
	if err != nil {
		return header, p.refused(err)
	}
	switch {
	case header.Transactional():
		return header, rpcerr.New(errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
			"batch for %s has the transactional bit in attributes; transactions are not offered: produce without a transactional id", p.name())
	case header.Control():
		return header, rpcerr.New(errorsv1.Reason_REASON_UNSUPPORTED_BATCH,
			"batch for %s has the control bit in attributes; control batches are the server's own: clear the bit", p.name())
	case header.MaxTimestamp < header.BaseTimestamp:
		return header, rpcerr.New(errorsv1.Reason_REASON_CORRUPT_BATCH,
			"batch for %s refused: maxTimestamp is %d, must be at least baseTimestamp (%d); build it anew", p.name(), header.MaxTimestamp, header.BaseTimestamp)
	}
	ahead := p.host.config.MaxTimestampAhead
	if config.TimestampType != rules.TimestampLogAppendTime && header.MaxTimestamp > now.Add(ahead).UnixMilli() {
		return header, rpcerr.New(errorsv1.Reason_REASON_INVALID_TIMESTAMP,
			"batch for %s has maxTimestamp %s, more than %s ahead of this node's clock; set the producer's clock, or send milliseconds since the Unix epoch",
			p.name(), describeTime(header.MaxTimestamp), ahead)
	}
	if config.Compacted() {
		return header, p.validateKeys(batch)
	}
	return header, nil
}

// validateKeys opens a batch for a compacted topic, where each record needs a
// key.
func (p *Partition) validateKeys(batch []byte) error {
	record := 0
	for r, err := range recordbatch.Records(batch, p.host.config.Decoding) {
		if err != nil {
			return p.refused(err)
		}
		if r.Key == nil {
			return rpcerr.New(errorsv1.Reason_REASON_KEY_REQUIRED,
				"record %d of the batch for %s has no key, which cleanup.policy=compact needs; give every record a key", record, p.name())
		}
		record++
	}
	return nil
}

// describeTime writes milliseconds as a time where there is such a year.
func describeTime(ms int64) string {
	if t := time.UnixMilli(ms).UTC(); t.Year() <= 9999 && t.Year() >= 0 {
		return t.Format(time.RFC3339)
	}
	return fmt.Sprintf("%d ms", ms)
}

// checkSequence asks the producer state what becomes of a batch; appending is
// held. What is on its way to the store counts as appended.
func (p *Partition) checkSequence(a rules.ProducerAppend) (original rules.ProducerBatch, duplicate bool, err error) {
	p.restoreProducers()
	verdict := p.producers.Check(a)
	switch verdict.Outcome {
	case rules.ProducerDuplicate:
		return verdict.Original, true, nil
	case rules.ProducerOutOfOrder:
		return original, false, rpcerr.New(errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE,
			"producer %d sent sequence number %d to %s, which expects %d; batches were lost or reordered: start over with a new producer id",
			a.ID, a.BaseSequence, p.name(), verdict.ExpectedSequence).
			WithDetail(&errorsv1.OutOfOrderSequence{ProducerId: a.ID, ExpectedSequence: verdict.ExpectedSequence, ReceivedSequence: a.BaseSequence})
	case rules.ProducerFenced:
		return original, false, rpcerr.New(errorsv1.Reason_REASON_PRODUCER_FENCED,
			"epoch %d of producer %d is fenced in %s: epoch %d has appended; stop this producer", a.Epoch, a.ID, p.name(), verdict.CurrentEpoch)
	case rules.ProducerUnknown:
		return original, false, rpcerr.New(errorsv1.Reason_REASON_UNKNOWN_PRODUCER,
			"%s does not remember producer %d, whose batch begins with sequence number %d instead of 0; start over with a new producer id", p.name(), a.ID, a.BaseSequence)
	}
	return original, false, nil
}

// recordSequence remembers a batch and returns what the store has to write and
// to remove; appending is held.
func (p *Partition) recordSequence(a rules.ProducerAppend, base, appendTime, timestamp int64) ([]store.Producer, []int64) {
	state, forgotten, forgot := p.producers.Record(a, base, appendTime, timestamp)
	var removed []int64
	if forgot {
		removed = []int64{forgotten}
		p.host.metrics.forgottenProducers.Inc()
	}
	return []store.Producer{storedProducer(state)}, removed
}

// restoreProducers turns what the log was opened with into the producer state;
// appending is held.
func (p *Partition) restoreProducers() {
	if p.producers != nil {
		return
	}
	loaded := p.loaded.Unpack()
	states := make([]rules.ProducerState, len(loaded))
	for i, producer := range loaded {
		states[i] = rules.ProducerState{ID: producer.ID, Epoch: producer.Epoch, LastTimestamp: producer.LastTimestamp}
		for _, b := range producer.Batches {
			states[i].Batches = append(states[i].Batches, rules.ProducerBatch(b))
		}
	}
	p.producers, _ = rules.RestoreProducers(p.host.config.ProducersPerPartition, states)
	p.loaded = ""
}

func storedProducer(s rules.ProducerState) store.Producer {
	out := store.Producer{ID: s.ID, Epoch: s.Epoch, LastTimestamp: s.LastTimestamp, Batches: make([]store.ProducerBatch, len(s.Batches))}
	for i, b := range s.Batches {
		out.Batches[i] = store.ProducerBatch(b)
	}
	return out
}
