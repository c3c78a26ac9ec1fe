package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// errReported ends a command that has said itself what went wrong.
var errReported = errors.New("the failure has been reported")

// failure is an error in words that are ready for a person.
type failure struct {
	message string
	cause   error
}

func (e *failure) Error() string { return e.message }
func (e *failure) Unwrap() error { return e.cause }

func failf(format string, args ...any) error {
	return &failure{message: fmt.Sprintf(format, args...)}
}

// usageError is a command line that cannot be understood; nothing was done.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// asUsageError reports whether err blames the command line, including what
// cobra and pflag found wrong with it.
func asUsageError(command *cobra.Command, err error) (*usageError, bool) {
	if usage, ok := errors.AsType[*usageError](err); ok {
		return usage, true
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return &usageError{fmt.Sprintf("bad value %q for %s: %s",
			invalid.GetValue(), flagName(invalid.GetFlag()), valueFault(invalid))}, true
	}
	if required, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return &usageError{fmt.Sprintf("%s needs a value", flagName(required.GetFlag()))}, true
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := "--" + unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			name = "-" + unknown.GetSpecifiedName()
		}
		return &usageError{fmt.Sprintf("%q has no flag %s", command.CommandPath(), name)}, true
	}
	if syntax, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return &usageError{fmt.Sprintf("%q is not a flag", syntax.GetSpecifiedFlag())}, true
	}
	return nil, false
}

func flagName(f *pflag.Flag) string {
	if f.Shorthand != "" {
		return fmt.Sprintf("-%s, --%s", f.Shorthand, f.Name)
	}
	return "--" + f.Name
}

func valueFault(invalid *pflag.InvalidValueError) string {
	if invalid.GetFlag().Value.Type() == "bool" {
		return "must be true or false"
	}
	return invalid.Unwrap().Error()
}

// sentence is err in words for a person, without the chain of what went wrong
// below it.
func sentence(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.message
	}
	if bootstrap, ok := errors.AsType[*runnel.BootstrapError](err); ok {
		return unreachable(bootstrap)
	}
	if partition, ok := errors.AsType[*runnel.PartitionError](err); ok {
		return partition.Error()
	}
	if e, ok := errors.AsType[*runnel.Error](err); ok {
		return e.Message
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, context.DeadlineExceeded):
		return "the cluster does not answer in time; try again, or look for the reason in the logs of its nodes"
	}
	return err.Error()
}

// unreachable says which addresses do not answer and what to do about it.
func unreachable(e *runnel.BootstrapError) string {
	var addresses []string
	for _, attempt := range e.Attempts {
		addresses = append(addresses, attempt.Address)
	}
	if slices.Equal(addresses, []string{defaultAddress}) {
		return fmt.Sprintf("no cluster answers (%s); start one with \"runnel up\", or give the address of one with --bootstrap or %s",
			attempts(e), bootstrapEnvVar)
	}
	return fmt.Sprintf("no cluster answers (%s); start one of these nodes, or give other addresses of the cluster with --bootstrap or %s: those of its metadata nodes will do, too",
		attempts(e), bootstrapEnvVar)
}

// attempts lists the addresses that were tried and what each said.
func attempts(e *runnel.BootstrapError) string {
	var tried []string
	for _, attempt := range e.Attempts {
		why := sentence(attempt.Err)
		if !strings.HasPrefix(why, attempt.Address) {
			why = attempt.Address + ": " + why
		}
		tried = append(tried, why)
	}
	return strings.Join(tried, "; ")
}

// largerRecords is the remedy for a record that its topic does not take.
const largerRecords = "make it smaller, or use a topic that takes more: \"runnel topics create\" with --config max.message.bytes=BYTES"

// refusedLine says why a line was not sent, and for one that is too large for
// its topic the remedy.
func refusedLine(err error) string {
	why := sentence(err)
	// The limit may also be another one, such as the producer's buffer.
	if runnel.ReasonOf(err) == errorsv1.Reason_REASON_RECORD_TOO_LARGE && strings.Contains(why, "max.message.bytes") {
		why += "; " + largerRecords
	}
	return why
}

// concernsOneRecord reports whether other records may be taken although one was
// refused with err.
func concernsOneRecord(err error) bool {
	if _, ok := errors.AsType[*lineTooLongError](err); ok {
		return true
	}
	switch runnel.ReasonOf(err) {
	case errorsv1.Reason_REASON_RECORD_TOO_LARGE,
		errorsv1.Reason_REASON_KEY_REQUIRED,
		errorsv1.Reason_REASON_INVALID_TIMESTAMP:
		return true
	}
	return false
}

// passes reports whether it makes sense to repeat a call that failed with err
// and that may be repeated: the cluster is not reachable, or not ready.
func passes(err error) bool {
	if _, ok := errors.AsType[*runnel.BootstrapError](err); ok {
		return true
	}
	e, ok := errors.AsType[*runnel.Error](err)
	return ok && e.Reason != errorsv1.Reason_REASON_TOPIC_NOT_FOUND && (e.Retriable() || e.OutcomeUnknown())
}

// complain writes one line to the standard error.
func (p *program) complain(format string, args ...any) {
	p.notef("runnel: "+format, args...)
}

// notef writes one line to the standard error. Line breaks in what it quotes
// do not break it.
func (p *program) notef(format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
	fmt.Fprintln(p.stderr, strings.TrimRight(text, ". "))
}

// arguments returns the check that a command gets exactly the named arguments.
func arguments(names ...string) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%q needs a %s", command.CommandPath(), names[len(args)])
		case len(args) > len(names) && len(names) == 0:
			return usagef("%q takes no argument, but got %q", command.CommandPath(), args[0])
		case len(args) > len(names):
			return usagef("%q takes only a %s, but also got %q (put quotes around a value with spaces)",
				command.CommandPath(), strings.Join(names, " and a "), args[len(names)])
		}
		for i, arg := range args {
			if arg == "" {
				return usagef("the %s is empty", names[i])
			}
		}
		return nil
	}
}
