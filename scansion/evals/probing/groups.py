"""Which binary sets of the sae-probes asset make up one data set, as SAEBench groups them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Binary sets whose accuracies are averaged.

    Attributes:
        members: names of sets.
        against_each_other: take each set's positives against those of the others, not against its own negatives.
    """

    members: tuple[str, ...]
    against_each_other: bool = False


_OCCUPATIONS = (
    "59_wikidata_occupation_isjournalist",
    "60_wikidata_occupation_isathlete",
    "61_wikidata_occupation_isactor",
    "62_wikidata_occupation_ispolitician",
    "63_wikidata_occupation_issinger",
    "64_wikidata_occupation_isresearcher",
)

# sae-probes gives its three AG News sets source code as negatives, which separates news from code, not one kind of news
# from another. SAEBench asks for the latter, so their positives are set against each other. (AG News' fourth class is
# not in the asset.)
GROUPS: dict[str, Group] = {
    "ag_news": Group(("161_agnews_0", "162_agnews_1", "163_agnews_2"), against_each_other=True),
    "code": Group(("158_code_C", "159_code_Python", "160_code_HTML")),
    "amazon_stars": Group(("157_amazon_5star",)),
    "occupations": Group(_OCCUPATIONS),
    **{f"occupations_{i}": Group(_OCCUPATIONS[2 * i - 2 : 2 * i]) for i in (1, 2, 3)},
    "art_types": Group(("126_art_type_book", "127_art_type_song", "128_art_type_movie")),
    # SST-2 of GLUE: phrases of film reviews, negative (0) or positive (1). The asset's 113_movie_sent is another set,
    # Rotten Tomatoes, of whole sentences.
    "sst2": Group(("92_glue_sst2",)),
}
