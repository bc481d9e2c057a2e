package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/pipeline"
)

// What shells complete comes from the flags' own definitions: a value that has choices lists them, and any other is what its usage
// calls it.

// chooser is a flag's value that knows what it can be. given is what stands on the command line so far.
type chooser interface{ choices(given string) []string }

// complete tells shells what a command's arguments and flags can be.
func complete(cmd *cobra.Command) {
	switch _, args, _ := strings.Cut(cmd.Use, " "); {
	case strings.HasPrefix(args, "FOLDER"):
		cmd.ValidArgsFunction = directories
	case args == "", strings.HasPrefix(args, hub.Scheme):
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Value.Type() == "bool" {
			return
		}
		var err error
		switch name, _ := pflag.UnquoteUsage(f); {
		case len(f.Annotations[choicesKey]) > 0:
			err = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(f.Annotations[choicesKey], cobra.ShellCompDirectiveNoFileComp))
		case name == "FILE", name == "MODEL":
		case name == "FOLDER":
			err = cmd.RegisterFlagCompletionFunc(f.Name, directories)
		default:
			c, _ := f.Value.(chooser)
			err = cmd.RegisterFlagCompletionFunc(f.Name, func(_ *cobra.Command, _ []string, given string) ([]string, cobra.ShellCompDirective) {
				if c == nil {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return c.choices(given), cobra.ShellCompDirectiveNoFileComp
			})
		}
		if err != nil {
			panic(err) // a flag that is not there, or completed twice
		}
	})
}

func directories(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

const choicesKey = "llmq_choices"

// choose says what a flag whose value is any text to pflag can be.
func choose(flags *pflag.FlagSet, name string, choices []string) {
	if err := flags.SetAnnotation(name, choicesKey, choices); err != nil {
		panic(err)
	}
}

// typeNames are those of all types, as they are mostly written.
func typeNames() []string {
	names := make([]string, len(ggml.Types))
	for i, t := range ggml.Types {
		names[i] = strings.ToLower(t.Name)
	}
	return names
}

func (v *typeValue) choices(string) []string      { return typeNames() }
func (v *methodValue) choices(string) []string    { return pipeline.MethodNames() }
func (v *smoothValue) choices(string) []string    { return []string{"auto", "off"} }
func (v *mtpValue) choices(string) []string       { return mtpNames }
func (v *precisionValue) choices(string) []string { return precisionNames }

func (v *outputHessianValue) choices(string) []string { return pipeline.OutputHessianNames() }

// choices are types behind the regular expression that is given.
func (v *ruleList) choices(given string) []string {
	pattern, _, ok := strings.Cut(given, "=")
	if !ok {
		return nil
	}
	names := typeNames()
	for i := range names {
		names[i] = pattern + "=" + names[i]
	}
	return names
}
