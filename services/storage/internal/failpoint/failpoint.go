// Package failpoint names the steps at which a test kills the process.
//
// Only a build with the tag "failpoints" has more of it than an empty function:
// there the variable [Variable] says what happens at which step, such as
//
//	RUNNEL_FAILPOINTS=seal/before-describe=kill@2,append/before-commit=sleep(5ms)
//
// kill ends the process with SIGKILL at the given hit, the first if none is
// given. sleep delays the given hit and all that follow.
package failpoint
