package embedetcd

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// irrelevant are warnings about a server on ports, which there is none of.
var irrelevant = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
}

// slogCore hands etcd's warnings and errors to slog; only errors once stopping is
// set, because etcd warns of everything that its stop cuts short.
type slogCore struct {
	logger   *slog.Logger
	stopping *atomic.Bool
	fields   []zapcore.Field
}

// Enabled implements zapcore.Core.
func (c *slogCore) Enabled(level zapcore.Level) bool {
	if c.stopping.Load() {
		return level >= zapcore.ErrorLevel
	}
	return level >= zapcore.WarnLevel
}

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	all := make([]zapcore.Field, 0, len(c.fields)+len(fields))
	return &slogCore{logger: c.logger, stopping: c.stopping, fields: append(append(all, c.fields...), fields...)}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) && !irrelevant[entry.Message] {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if entry.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(encoder)
	}
	for _, f := range fields {
		f.AddTo(encoder)
	}
	attrs := make([]slog.Attr, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		attrs = append(attrs, slog.Any(key, value))
	}
	c.logger.LogAttrs(context.Background(), level, entry.Message, attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }
