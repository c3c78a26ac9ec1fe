// Package contract holds the tests that no single part can own: which part may
// import which, what any cluster, in one process or in many, owes to its clients,
// and what these see when its processes are killed. It has no code of its own.
//
// Tests with processes share [mesh], whose nodes are killed and come back one by one
// or all together, and [history], which judges what clients have seen, whatever was
// done to the cluster. Suites that run for longer, cut networks or break disks have
// their place here too, behind a flag.
package contract
