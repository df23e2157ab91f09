"""The world that the sample corpus shows: scenes, facts about them, and how they are written."""
