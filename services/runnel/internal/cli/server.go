package cli

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// logFlags say what a server writes to the standard error.
type logFlags struct {
	level, format *parsed[string]
}

const (
	logText = "text"
	logJSON = "json"
)

var logLevels = []string{"debug", "info", "warn", "error"}

func newLogFlags(command *cobra.Command, level string) *logFlags {
	flags := command.Flags()
	return &logFlags{
		level:  choiceFlag(command, flags, "log-level", "", level, "least severe entries to log", logLevels...),
		format: choiceFlag(command, flags, "log-format", "", logText, "form of the log", logText, logJSON),
	}
}

// logger returns a logger to the standard error.
func (p *program) logger(f *logFlags) *slog.Logger {
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	options := &slog.HandlerOptions{Level: levels[slices.Index(logLevels, f.level.value)]}
	if f.format.value == logJSON {
		return slog.New(slog.NewJSONHandler(p.stderr, options))
	}
	return slog.New(slog.NewTextHandler(p.stderr, options))
}

// dirFlag adds --data-dir.
func dirFlag(flags *pflag.FlagSet, directory string) *string {
	var chosen string
	textFlag(flags, &chosen, "data-dir", "DIR", directory, "directory that holds all data; created if need be")
	return &chosen
}

// absolute is where a directory lies whatever becomes the working directory, for
// what is shown to the person.
func absolute(directory string) string {
	if path, err := filepath.Abs(directory); err == nil {
		return path
	}
	return directory
}

// listenFlag adds a flag for an address to listen on.
func listenFlag(flags *pflag.FlagSet, name, address, usage string) *parsed[string] {
	return newFlag(flags, name, "", "ADDR", address, usage, parseListenAddress)
}

// parseListenAddress accepts host:port where both may be left open: no host is
// every address of the machine, port 0 a free one.
func parseListenAddress(text string) (string, error) {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("must look like host:port, such as %s, or :7070 for all addresses of the machine", defaultAddress)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("must end in a port from 0 to 65535")
	}
	return text, nil
}

// advertiseFlag adds a flag for the address that others are told to come to.
func advertiseFlag(flags *pflag.FlagSet, name, usage string) *parsed[string] {
	return newFlag(flags, name, "", "ADDR", "", usage, func(text string) (string, error) { return text, checkAddress(text) })
}

// openToMachines reports whether other machines may reach a server that listens
// there.
func openToMachines(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil || host == "localhost" {
		return false
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

// anyHost reports whether an address to listen on names no host that others
// could come to.
func anyHost(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

// warnOpen warns of addresses that other machines may reach.
func (p *program) warnOpen(addresses ...string) {
	for _, address := range addresses {
		if openToMachines(address) {
			p.notef("warning: other machines may reach %s, and Runnel has no authentication or encryption yet", address)
		}
	}
}
