package store

import (
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// EtcdLogger passes the errors of etcd's libraries on to a logger, and nothing less: its warnings are about what clients do.
func EtcdLogger(logger *slog.Logger) *zap.Logger {
	return zap.New(&zapBridge{logger: logger}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

// zapBridge is a zapcore.Core over a slog logger.
type zapBridge struct {
	logger *slog.Logger
	fields []zapcore.Field
}

func (*zapBridge) Enabled(level zapcore.Level) bool { return level >= zapcore.ErrorLevel }

func (b *zapBridge) With(fields []zapcore.Field) zapcore.Core {
	return &zapBridge{b.logger, append(b.fields[:len(b.fields):len(b.fields)], fields...)}
}

func (b *zapBridge) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(entry.Level) {
		return checked.AddCore(entry, b)
	}
	return checked
}

func (b *zapBridge) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, field := range append(b.fields[:len(b.fields):len(b.fields)], fields...) {
		field.AddTo(encoder)
	}
	b.logger.Error("etcd", "message", entry.Message, "fields", encoder.Fields)
	return nil
}

func (*zapBridge) Sync() error { return nil }
