package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write manual pages, one for each command",
		Long:  "Writes llmq.1, llmq-quantize.1 and so on into FOLDER, which is made if it does not exist.",
		Example: `  llmq man man1 && man man1/llmq-quantize.1
  llmq man ~/.local/share/man/man1`,
		Args:   exactArgs("FOLDER"),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "llmq " + version(), Manual: "llmq"}
			if at, err := time.Parse(time.RFC3339, buildSetting("vcs.time")); err == nil { // else SOURCE_DATE_EPOCH, or now
				header.Date = &at
			}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return nil
		},
	}
}

// buildSetting is what the go command has noted of the build, "" if nothing.
func buildSetting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
