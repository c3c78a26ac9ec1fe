// Package failpoint names the steps at which a test kills the process. Without
// the build tag "failpoints" it does nothing and costs nothing.
package failpoint
