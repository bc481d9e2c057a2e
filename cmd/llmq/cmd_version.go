package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/llmq/llmq/kernels"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, how it was built, and the instructions that it uses here",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.stdout, "llmq %s %s %s/%s\n%sinstructions: %v of %v (%s lowers them)\n", version(), runtime.Version(), runtime.GOOS,
				runtime.GOARCH, commit(), kernels.CurrentTier(), kernels.BestTier(), kernels.TierEnv)
			return err
		},
	}
}

// version is the module's version, or the commit where it was built from a clone.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// commit is a line about the commit that was built, "" where that is not known.
func commit() string {
	hash, at := buildSetting("vcs.revision"), buildSetting("vcs.time")
	switch {
	case hash == "":
		return ""
	case buildSetting("vcs.modified") == "true":
		at += ", with changes"
	}
	return fmt.Sprintf("commit %s of %s\n", hash, at)
}
