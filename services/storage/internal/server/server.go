// Package server is the face of the storage service: LogService for clients, and
// FencedAppendService for coordinators. It maps requests to partitions and back, and
// knows nothing of how either works.
package server

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/replica"
)

// Config bounds what clients may take.
type Config struct {
	// StreamRequests is how many requests of a Produce stream may be unanswered
	// before the server stops reading it; 1 or more.
	StreamRequests int
	// Streams bounds the goroutines that serve streams, two for Produce, one for Consume
	// and another while it reads from the disk; 2 or more.
	Streams int
	// ResponseBytes is what the responses that Consume streams are sending, and those
	// that were read ahead, may hold together, but for two batches or 128 KiB each; 1
	// or more.
	ResponseBytes int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{StreamRequests: 1024, Streams: 20_000, ResponseBytes: 128 << 20}
}

// Server is the handler of LogService.
type Server struct {
	config   Config
	host     *partition.Host
	replicas *replica.Replicas
	ids      *ProducerIDs
	drain    *rpc.Drain
	logger   *slog.Logger
	streams  *rpc.Streams
	// consumers counts the Consume streams.
	consumers atomic.Int64

	producing, consuming prometheus.Gauge
}

var _ storagev1connect.LogServiceHandler = (*Server)(nil)

// New returns the handler. registerer may be nil.
func New(config Config, host *partition.Host, replicas *replica.Replicas, ids *ProducerIDs, drain *rpc.Drain, logger *slog.Logger, registerer prometheus.Registerer) *Server {
	s := &Server{
		config:   config,
		host:     host,
		replicas: replicas,
		ids:      ids,
		drain:    drain,
		logger:   logger,
		streams:  rpc.NewStreams(config.Streams),
		producing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "runnel_storage_produce_streams", Help: "Produce streams being served.",
		}),
		consuming: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "runnel_storage_consume_streams", Help: "Consume streams being served.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(s.producing, s.consuming)
	}
	return s
}

// Wait returns once no stream is being served, or with the error of ctx.
func (s *Server) Wait(ctx context.Context) error { return s.streams.Wait(ctx) }

// failure turns an error into what is sent in a response, and logs it if nobody
// foresaw it.
func (s *Server) failure(ctx context.Context, err error) *errorsv1.Failure {
	return failureOf(ctx, s.logger, err)
}

func failureOf(ctx context.Context, logger *slog.Logger, err error) *errorsv1.Failure {
	if err == nil {
		return nil
	}
	e := rpcerr.Classify(err)
	if e.Incident != "" {
		logger.LogAttrs(ctx, slog.LevelError, "request failed unexpectedly", slog.String("incident", e.Incident), slog.Any("error", err))
	}
	return e.Failure()
}
