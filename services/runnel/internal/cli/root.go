package cli

import (
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
)

const (
	defaultAddress  = "127.0.0.1:7070"
	bootstrapEnvVar = "RUNNEL_BOOTSTRAP"
)

const rootHelp = `Runnel is a distributed commit log: topics with partitions, written by producers
and read by consumers at their own pace.

Start a whole cluster in one process with "runnel up"; it prints what to try
next. All other commands talk to a running cluster, at --bootstrap.

Exit codes: 0 success; 1 failure; 2 wrong usage, in which case nothing was done.
Results go to the standard output, everything else to the standard error.`

const rootExample = `  runnel up
  echo "hello world" | runnel produce greetings
  runnel consume greetings --from-beginning --exit-at-end
  runnel topics list -o json --bootstrap log-1:7070,log-2:7070`

func (p *program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "runnel",
		Short:         "A distributed commit log",
		Long:          rootHelp,
		Example:       rootExample,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownCommand(c, args[0])
		},
	}
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.stderr)
	root.SetVersionTemplate("runnel {{.Version}}\n")
	root.AddGroup(&cobra.Group{ID: groupServe, Title: "Start services:"}, &cobra.Group{ID: groupUse, Title: "Use a cluster:"})

	flags := root.PersistentFlags()
	flags.SortFlags = false
	p.bootstrap = newFlag(flags, "bootstrap", "", "ADDR[,ADDR]", p.defaultBootstrap(),
		"addresses of nodes of the cluster; any one that answers will do (env "+bootstrapEnvVar+")", parseAddresses)
	p.output = choiceFlag(root, flags, "output", "o", outputTable, "form of the results", outputTable, outputJSON)

	root.AddCommand(
		p.topicsCommand(), p.partitionsCommand(), p.produceCommand(), p.consumeCommand(), p.groupsCommand(), p.clusterCommand(), p.benchCommand(),
		p.upCommand(), p.metadataCommand(), p.storageCommand(), p.coordinatorCommand(), p.versionCommand(),
	)
	root.SetHelpCommand(helpCommand())
	// Cobra adds the command for completions only if there is none; it is adjusted
	// here, since it answers an unknown shell with success.
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == completionName {
			c.Args, c.RunE = needsCommand()
			for _, shell := range c.Commands() {
				shell.Args = arguments()
			}
		}
	}
	return root
}

const (
	helpName       = "help"
	completionName = "completion"
)

// needsCommand returns what a command does that only has commands below it:
// refuse to run without one of them.
func needsCommand() (cobra.PositionalArgs, func(*cobra.Command, []string) error) {
	return cobra.ArbitraryArgs, func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		var names []string
		for _, sub := range c.Commands() {
			names = append(names, sub.Name())
		}
		return usagef("%q needs a command: %s", c.CommandPath(), alternatives(names))
	}
}

const (
	groupServe = "serve"
	groupUse   = "use"
)

// defaultBootstrap returns the address to use without --bootstrap. A bad one in
// the environment is left for the commands that need it: it must not stop
// --help or up.
func (p *program) defaultBootstrap() string {
	if address := p.Getenv(bootstrapEnvVar); address != "" {
		if _, err := parseAddresses(address); err == nil {
			return address
		}
	}
	return defaultAddress
}

// commandGroup returns a command that only has commands below it.
func commandGroup(use, short, long, example string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{Use: use, Short: short, Long: long, Example: example, GroupID: groupUse}
	group.Args, group.RunE = needsCommand()
	group.AddCommand(commands...)
	return group
}

func unknownCommand(c *cobra.Command, name string) error {
	hint := ""
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if near := c.SuggestionsFor(name); len(near) > 0 {
		slices.Sort(near)
		hint = fmt.Sprintf(", did you mean %s?", alternatives(near))
	}
	return usagef("%q has no command %q%s", c.CommandPath(), name, hint)
}

// helpCommand replaces cobra's, which answers an unknown command with success.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   helpName + " [COMMAND]",
		Short: "Help about any command",
		Args:  cobra.ArbitraryArgs,
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			command, _, err := c.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, sub := range command.Commands() {
				if sub.IsAvailableCommand() {
					names = append(names, sub.Name())
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			command, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(command, args[len(args)-max(1, len(rest))])
			}
			command.InitDefaultHelpFlag()
			command.InitDefaultVersionFlag()
			return command.Help()
		},
	}
}

// versionCommand says what --version says.
func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Print the version, as --version does.

With -o json it is an object with the field version.`,
		Example:           `  runnel version`,
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			t := newTable()
			t.row("runnel " + version())
			return p.print(map[string]string{"version": version()}, t)
		},
	}
}

// version names the build: the module's version, or the commit of a build from
// a checkout.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	setting := func(key string) string {
		if i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == key }); i >= 0 {
			return info.Settings[i].Value
		}
		return ""
	}
	if revision := setting("vcs.revision"); revision != "" {
		return "development build of commit " + revision
	}
	return "development build"
}
