// Package server is the public face of the coordinator service, GroupService and
// OffsetService: it checks requests, finds who coordinates a group, and maps names and
// messages to the rules and back.
package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/groups"
	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// What the contract allows.
const (
	LeastSession   = time.Second
	MostSession    = 30 * time.Minute
	defaultSession = 45 * time.Second

	leastRebalance   = time.Second
	mostRebalance    = 24 * time.Hour
	defaultRebalance = 5 * time.Minute

	maxNameBytes     = 255
	maxTopics        = 1000
	maxPatternBytes  = 1024
	maxCommits       = 10_000
	maxResets        = 10_000
	maxMetadataBytes = 4096
	// maxAsked is how many partitions a request may name that reads or forgets offsets.
	maxAsked = 100_000
)

// prepareWithin bounds the wait for __consumer_offsets to be created.
const prepareWithin = 15 * time.Second

// appliedWithin bounds the wait for a group to be given to a coordinator, and for the
// shards to act on that, which are matters of moments.
const appliedWithin = 3 * time.Second

// Config bounds what clients may take.
type Config struct {
	// MinSessionTimeout and MaxSessionTimeout lie from [LeastSession] to [MostSession].
	MinSessionTimeout, MaxSessionTimeout time.Duration
	// Streams bounds the Join streams, and by themselves the goroutines that serve streams
	// of commits: two and one for each group whose commits are being carried out; 1 or more.
	Streams int
}

// Deps is what a server works with.
type Deps struct {
	Host    *groups.Host
	Leaders *offsets.Leaders
	View    *clusterview.View
	Topics  peerv1connect.OffsetsTopicServiceClient
	// Self returns the number of the node, 0 before it has one.
	Self  func() cluster.NodeID
	Drain *rpc.Drain
	// Logger gets what nobody foresaw.
	Logger *slog.Logger
	// Registerer may be nil.
	Registerer prometheus.Registerer
}

// Server is the handler of GroupService and OffsetService.
type Server struct {
	config  Config
	host    *groups.Host
	leaders *offsets.Leaders
	view    *clusterview.View
	topics  peerv1connect.OffsetsTopicServiceClient
	self    func() cluster.NodeID
	drain   *rpc.Drain
	logger  *slog.Logger
	// streams are those of Join, committing those of commits: neither takes the other's
	// place.
	streams, committing *rpc.Streams
	joined, committers  prometheus.Gauge
	// streamed is how long commits of streams took, by what clients were told.
	streamed *prometheus.HistogramVec
	// unchecked counts offsets that were recorded without knowing the log's end.
	unchecked prometheus.Counter
	// preparing has a token while the offsets topic is being asked for.
	preparing chan struct{}
}

var (
	_ coordinatorv1connect.GroupServiceHandler  = (*Server)(nil)
	_ coordinatorv1connect.OffsetServiceHandler = (*Server)(nil)
)

// New returns the handler.
func New(config Config, deps Deps) *Server {
	s := &Server{
		config: config, host: deps.Host, leaders: deps.Leaders, view: deps.View, topics: deps.Topics, self: deps.Self,
		drain: deps.Drain, logger: deps.Logger,
		streams: rpc.NewStreams(config.Streams), committing: rpc.NewStreams(config.Streams), preparing: make(chan struct{}, 1),
		joined: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "runnel_coordinator_join_streams", Help: "Join streams being served.",
		}),
		committers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "runnel_coordinator_commit_streams", Help: "Streams of commits being served.",
		}),
		streamed: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "runnel_coordinator_streamed_commit_seconds",
			Help:    "Time from when a commit of a stream was read until it was answered, by the code that a call would have got.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"code"}),
		unchecked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "runnel_coordinator_unchecked_commits_total", Help: "Offsets that members have committed while no leader could say whether the partition reaches that far.",
		}),
	}
	if deps.Registerer != nil {
		deps.Registerer.MustRegister(s.joined, s.committers, s.streamed, s.unchecked)
	}
	return s
}

// Wait returns once no stream is being served, or with the error of ctx.
func (s *Server) Wait(ctx context.Context) error {
	if err := s.streams.Wait(ctx); err != nil {
		return err
	}
	return s.committing.Wait(ctx)
}

// invalid refuses a request.
func invalid(format string, args ...any) error {
	return rpcerr.New(errorsv1.Reason_REASON_INVALID_REQUEST, format, args...)
}

// checkGroup refuses what cannot be the id of a group.
func checkGroup(group string) error {
	switch {
	case group == "":
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_GROUP_ID, "the group id is empty; give the group a name of 1 to %d bytes", maxNameBytes)
	case len(group) > maxNameBytes:
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_GROUP_ID, "the group id has %d bytes; give the group a name of 1 to %d bytes", len(group), maxNameBytes)
	case !isText(group):
		return rpcerr.New(errorsv1.Reason_REASON_INVALID_GROUP_ID, "group id %q is not UTF-8 or has control characters; give the group a name without", group)
	}
	return nil
}

// isText reports whether people can be shown a name as it is.
func isText(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

// find returns the partition of a group that this node coordinates, or an error that
// says who does.
func (s *Server) find(ctx context.Context, group string) (int32, error) {
	if err := checkGroup(group); err != nil {
		return 0, err
	}
	image, err := s.offsetsTopic(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, appliedWithin)
	defer cancel()
	if _, partition, ok := image.GroupPartition(group); ok && partition.Coordinator == cluster.NoNode {
		// As when the topic was created a moment ago.
		image, err = s.view.Await(ctx, func(image *cluster.Image) bool {
			_, partition, ok := image.GroupPartition(group)
			return ok && partition.Coordinator != cluster.NoNode
		})
		if err != nil {
			return 0, s.elsewhere(group)
		}
	}
	_, partition, ok := image.GroupPartition(group)
	if !ok || partition.Coordinator != s.self() {
		return 0, s.elsewhere(group)
	}
	if s.host.WaitApplied(ctx, image.Version) != nil {
		return 0, s.elsewhere(group)
	}
	return partition.Index, nil
}

// offsetsTopic returns an image that shows the offsets topic, which is created if it
// does not exist.
func (s *Server) offsetsTopic(ctx context.Context) (*cluster.Image, error) {
	there := func(image *cluster.Image) bool {
		_, ok := image.Topic(cluster.OffsetsTopic)
		return ok
	}
	image := s.view.Image()
	switch {
	case image == nil:
		return nil, rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "this coordinator does not know the cluster yet: it has not reached a metadata service since it started; try again")
	case there(image):
		return image, nil
	}
	ctx, cancel := context.WithTimeout(ctx, prepareWithin)
	defer cancel()
	select {
	case s.preparing <- struct{}{}:
		_, err := s.topics.PrepareOffsetsTopic(ctx, &peerv1.PrepareOffsetsTopicRequest{})
		<-s.preparing
		if err != nil {
			cause := rpcerr.Classify(err)
			return nil, rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "topic %s, in which groups are kept, could not be created: %s; try again", cluster.OffsetsTopic, cause.Message).WithCause(err)
		}
	default: // Somebody else has asked.
	}
	image, err := s.view.Await(ctx, there)
	if err != nil {
		return nil, rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "topic %s, in which groups are kept, is not there yet; try again", cluster.OffsetsTopic).WithCause(err)
	}
	return image, nil
}

// elsewhere says who coordinates a group.
func (s *Server) elsewhere(group string) error {
	detail := &errorsv1.NotCoordinator{Group: group}
	if image := s.view.Image(); image != nil {
		if _, partition, ok := image.GroupPartition(group); ok {
			if node, known := image.Node(partition.Coordinator); known {
				detail.CoordinatorId, detail.CoordinatorAddress = int32(node.ID), node.Address
			}
		}
	}
	switch detail.CoordinatorId {
	case 0:
		return rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "group %q has no coordinator at the moment; try again", group).WithDetail(detail)
	case int32(s.self()):
		return rpcerr.New(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE, "this coordinator is about to take group %q over; try again", group).WithDetail(detail)
	}
	return rpcerr.New(errorsv1.Reason_REASON_NOT_COORDINATOR, "this node does not coordinate group %q, node %d does; send the request to %s", group, detail.GetCoordinatorId(), detail.GetCoordinatorAddress()).WithDetail(detail)
}

// translate makes what clients are told of an error of the rules.
func (s *Server) translate(group string, err error) error {
	refusal, ok := errors.AsType[*rules.Refusal](err)
	switch {
	case !ok:
		return err
	case refusal.Reason == errorsv1.Reason_REASON_NOT_COORDINATOR:
		return s.elsewhere(group)
	}
	return refused(refusal)
}

// refused is a refusal as clients are told of it.
func refused(r *rules.Refusal) *rpcerr.Error {
	return &rpcerr.Error{Reason: r.Reason, Message: r.Message}
}

// ask submits a request about a group and returns the answer, which is of the type
// that the request has.
func ask[T any](ctx context.Context, s *Server, group string, request rules.Request) (answer T, _ error) {
	index, err := s.find(ctx, group)
	if err != nil {
		return answer, err
	}
	value, err := s.host.Do(ctx, index, request)
	if err != nil {
		return answer, s.translate(group, err)
	}
	answer, _ = value.(T)
	return answer, nil
}
