"""The chaos suite of the producers: server hurt, processes killed, and nothing lost that was promised."""
