package local

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gobwas/glob"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// collect fills assets and archive with the files that their patterns name.
func (c *CommandOutputs) collect() error {
	folder := "."
	if c.Dir != nil {
		folder = *c.Dir
	}
	if c.AssetPaths != nil {
		assets, err := matchingAssets(folder, c.AssetPaths)
		if err != nil {
			return err
		}
		c.Assets = assets
	}
	if c.ArchivePaths != nil {
		assets, err := matchingAssets(folder, c.ArchivePaths)
		if err != nil {
			return err
		}
		members := make(map[string]any, len(assets))
		for name, asset := range assets {
			members[name] = asset
		}
		archive, err := resource.NewAssetArchive(members)
		if err != nil {
			return err
		}
		c.Archive = archive
	}
	return nil
}

func matchingAssets(folder string, patterns []string) (map[string]*resource.Asset, error) {
	names, err := matchingFiles(folder, patterns)
	if err != nil {
		return nil, err
	}
	assets := make(map[string]*resource.Asset, len(names))
	for _, name := range names {
		asset, err := resource.NewPathAsset(filepath.Join(folder, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		assets[name] = asset
	}
	return assets, nil
}

type rule struct {
	exclude bool
	pattern glob.Glob
}

// matchingFiles lists the files below folder, as paths relative to it with / between their parts, that the patterns
// name. The rules of the published schema: a pattern that starts with ! takes away what the ones before it gave, *
// matches all but /, ** matches / too, folders are never listed.
func matchingFiles(folder string, patterns []string) ([]string, error) {
	rules := make([]rule, 0, len(patterns))
	for _, text := range patterns {
		bare, exclude := strings.CutPrefix(text, "!")
		pattern, err := glob.Compile(bare, '/')
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule{exclude, pattern})
	}
	var names []string
	err := fs.WalkDir(os.DirFS(folder), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && selected(name, rules) {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

func selected(name string, rules []rule) bool {
	chosen := false
	for _, rule := range rules {
		if rule.pattern.Match(name) {
			chosen = !rule.exclude
		}
	}
	return chosen
}
