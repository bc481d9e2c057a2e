package atomicfile

import "os"

// claim does nothing: Windows lets nobody remove a file that a process has open.
func claim(*os.File) bool { return true }

// removeAbandoned removes a temporary file that no process has open, and says whether it did.
func removeAbandoned(path string) bool { return os.Remove(path) == nil }
