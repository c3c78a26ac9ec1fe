package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// AlterTopicConfig returns the settings of a topic that set those in config,
// after those in set have got a value and those in unset none. The error says
// what cannot be changed in this way and what can; config stays as it is.
//
// A setting that this release does not know may be unset, so that a topic which
// has one can be put right.
func AlterTopicConfig(config, set map[string]string, unset []string) (map[string]string, error) {
	if len(set)+len(unset) == 0 {
		return nil, errors.New("the change names no setting: give one a value, or name one to unset")
	}
	altered := maps.Clone(config)
	if altered == nil {
		altered = make(map[string]string)
	}
	maps.Copy(altered, set)
	var errs []error
	known := settingNames()
	for _, name := range unset {
		_, own := config[name]
		_, both := set[name]
		switch {
		case both:
			errs = append(errs, fmt.Errorf("topic setting %s is both given a value and unset: do only one of them", name))
		case !own && !slices.Contains(known, name):
			errs = append(errs, fmt.Errorf("topic setting %q is unknown and cannot be unset: use one of %s", name, strings.Join(known, ", ")))
		}
		delete(altered, name)
	}
	if len(errs) == 0 {
		if _, err := ParseTopicConfig(altered); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, joined(errs)
	}
	return altered, nil
}
