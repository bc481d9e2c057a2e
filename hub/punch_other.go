//go:build !linux

package hub

import (
	"errors"
	"os"
)

func punch(*os.File, int64, int64) error { return errors.ErrUnsupported }

func systemStart() string { return "unknown" }

// Lazily says whether Client.Lazy is there.
const Lazily = false
